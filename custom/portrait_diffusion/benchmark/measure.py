"""Everything that is measured of one head: against the truth of a synthetic subject, or against a photo alone.

Views are compared over white inside the true mask and averaged by bins of absolute azimuth; the input view is a bin of
its own. What cannot be computed is missing (None, with a reason), never zero.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import EnvironmentProblem, UsageError
from ..evaluation import image
from ..evaluation.canonical import ArcFace, ClipImages, Lpips
from ..evaluation.consistency import flicker, warp_error
from ..evaluation.distribution import EfficientNetLite0
from ..evaluation.dlib_identity import DlibFaces, descriptor_distance
from ..evaluation.geometry import depth_error, landmark_error, normal_error, surface_distance
from ..evaluation.identity import BACK_AZIMUTH_DEG, behind_scores, janus_rate, largest_face, sface_of
from ..evaluation.report_metrics import load_perceptual
from ..evaluation.stlpips import find_weights
from ..export.renders import RenderFn
from ..ops.cameras import METRES_PER_UNIT, get_rays, orbit_c2w
from ..renderer.volume import unit_normals
from ..synthetic.views import BENCHMARK_AZIMUTHS, BENCHMARK_ELEVATIONS
from .truth import Cameras, Pictures, Truth

BINS = {"front": (0.0, 30.0), "side": (30.0, 75.0), "profile": (75.0, 105.0), "back": (105.0, 180.0)}
"""Absolute azimuth above the first (front: from it on) and up to the second, degrees."""
FACE_DEG = 75.0
"""Azimuth up to which identities and facial landmarks are compared: beyond it recognisers tell little."""
LEAST_HAIR = 0.01
"""Share of a picture that hair covers at least where hair is compared."""
LEAST_SPECK_PIXELS = 100
"""Pixels inside an outline from which on a view's specks count."""
WARP_DEG = (15, 30)
SURFACE_POINTS = 100000
"""Of a head, about a millimetre apart: distances below that tell nothing."""
OF_USERS = {
    "clip_i": "CLIP's weights come with no package; give your own: --clip FOLDER",
    "clip_i_input": "CLIP's weights come with no package; give your own: --clip FOLDER",
    "arcface_id": "ArcFace's weights come with no package; give your own: --arcface FILE.onnx",
    "lpips": "LPIPS's backbone comes with no package; give torchvision's own: --lpips alexnet-owt-7be5be79.pth",
}
"""Metrics whose weights only users have, and how to give them."""
PHOTO_AZIMUTHS = {"front": 0, "plus30": 30, "minus30": -30}
"""Level views in which a head is compared with its photo's face."""


@dataclass(frozen=True)
class Scope:
    """How much is measured of a head.

    Attributes: rings of views, of 3 elevations; every n-th azimuth of a ring, 1 or 2; film: frames of each flicker
        film, odd; vgg: also ST-LPIPS on VGG, the slowest metric.
    """

    rings: int = 3
    every: int = 1
    film: int = 9
    vgg: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.rings <= len(BENCHMARK_ELEVATIONS) or self.every not in (1, 2) or self.film < 3:
            raise UsageError(f"A scope has rings 1 to 3, every 1 or 2, and a film of 3 or more frames; got {self}.")

    def rows(self) -> list[int]:
        """Rows of a subject's views that are compared."""
        return list(range(0, self.rings * len(BENCHMARK_AZIMUTHS), self.every))


@dataclass
class Nets:
    """Networks of the metrics, loaded once; what is missing says why."""

    perceptual: dict[str, Callable] = field(default_factory=dict)
    features: Callable | None = None
    dlib: DlibFaces | None = None
    clip: Callable | None = None
    arcface: ArcFace | None = None
    lpips: Callable | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls, device: torch.device | str, scope: Scope, clip: str = "", arcface: str = "", lpips: str = ""
    ) -> "Nets":
        """Those whose weights are installed and that the scope wants. Args: clip, arcface, lpips: files of the user."""
        nets = cls(
            clip=ClipImages(clip, device) if clip else None,
            arcface=ArcFace(arcface) if arcface else None,
            lpips=Lpips(lpips).to(device) if lpips else None,
        )
        nets.reasons = {metric: why for metric, why in OF_USERS.items() if getattr(nets, metric.split("_")[0]) is None}
        nets.perceptual = {k: net for k, net in load_perceptual(device).items() if scope.vgg or k != "vgg"}
        for name in ("alex", "vgg"):
            if name not in nets.perceptual:
                try:
                    find_weights(name)
                    nets.reasons[f"stlpips_{name}"] = "the profile leaves it out"
                except EnvironmentProblem as problem:
                    nets.reasons[f"stlpips_{name}"] = str(problem)
        try:
            nets.features = EfficientNetLite0().to(device)
        except EnvironmentProblem as problem:
            nets.reasons["fd_efflite0"] = str(problem)
        try:
            nets.dlib = DlibFaces()
        except EnvironmentProblem as problem:
            nets.reasons["dlib_l2"] = str(problem)
        step = 360 // len(BENCHMARK_AZIMUTHS) * scope.every
        for degrees in WARP_DEG:
            if degrees % step:
                missing = [f"{kind}_warp{of}_{degrees}" for kind in ("self", "truth") for of in ("", "_lpips")]
                nets.reasons |= dict.fromkeys(missing, f"the profile compares views {step} degrees apart")
        return nets


def bin_name(azimuth_deg: float) -> str:
    """The bin of an azimuth, any period."""
    angle = abs((azimuth_deg + 180) % 360 - 180)
    return next(name for name, (_, high) in BINS.items() if angle <= high)


def render_views(render: RenderFn, cameras: Cameras, size: int) -> Pictures:
    """Renders over white, one view at a time."""
    views = []
    for pose, angle in zip(cameras.c2w.split(1), cameras.fovy.split(1)):
        out = {name: value.detach().to(pose) for name, value in render(pose, angle, size, size).items()}
        rgb = (out["comp_rgb_fg"] + 1 - out["opacity"]).clamp(0, 1)
        seen = out["opacity"][..., 0] > 0.5
        normal = unit_normals(out["comp_normal"], out["opacity"])
        views.append((rgb.permute(0, 3, 1, 2), out["opacity"].permute(0, 3, 1, 2), out["depth"][..., 0] * seen, normal))
    return Pictures(*(torch.cat(part) for part in zip(*views)))


@torch.no_grad()
def view_metrics(made: Pictures, true: Truth, nets: Nets) -> dict[str, list[float]]:
    """{metric: a value a view, NaN where it makes no sense there}."""
    truth, mask, millimetres = true.pictures, true.pictures.alpha, 1000 * METRES_PER_UNIT
    found = {
        "psnr_db": image.psnr(made.rgb, truth.rgb, mask), "ssim": image.ssim(made.rgb, truth.rgb, mask),
        "iou": image.silhouette_iou(made.alpha, truth.alpha),
        "laplacian_ratio": image.laplacian_variance_ratio(made.rgb, truth.rgb, mask),
        "depth_mm": millimetres * depth_error(made.depth, truth.depth),
    }  # fmt: skip
    both = ((truth.depth > 0) & (made.depth > 0)).float()
    found["normal_deg"] = normal_error(made.normal, truth.normal, both)["mean"]
    bands = image.band_energy_ratios(made.rgb, truth.rgb, mask)
    found |= {f"band_ratio_{k + 1}": bands[:, k] for k in range(bands.shape[1])}
    hairy = true.hair.mean(dim=(1, 2, 3)) > LEAST_HAIR
    for name, net in nets.perceptual.items():
        values, hair = [], []
        for a, b, m, h in zip(made.rgb.split(8), truth.rgb.split(8), mask.split(8), true.hair.split(8)):
            first, second = net.features(a), net.features(b)
            values.append(net.compare(first, second, m).float())
            hair.append(net.compare(first, second, h).float())
        found[f"stlpips_{name}"] = torch.cat(values)
        if name == "alex":
            found["stlpips_hair"] = torch.where(hairy, torch.cat(hair), torch.nan)
    if nets.clip is not None:
        own, theirs = (torch.cat([nets.clip(part) for part in x.rgb.split(16)]) for x in (made, truth))
        found["clip_i"], found["clip_i_input"] = (own * theirs).sum(dim=1), own @ theirs[0]  # view 0 is the input's
    if nets.lpips is not None:
        found["lpips"] = torch.cat([nets.lpips(a, b) for a, b in zip(made.rgb.split(8), truth.rgb.split(8))])
    return {name: [float(v) for v in values] for name, values in found.items()} | face_metrics(made, true, nets)


def _hwc(picture: Tensor) -> np.ndarray:
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


@dataclass(frozen=True)
class FaceFound:
    """What recognisers say of a picture's face; None where there is none. ``landmarks`` (5, 2), any unit."""

    sface: np.ndarray | None
    landmarks: np.ndarray | None = None
    dlib: np.ndarray | None = None
    arcface: np.ndarray | None = None

    @classmethod
    def of(cls, picture: np.ndarray, nets: Nets) -> "FaceFound":
        """Of a picture (H, W, 3) uint8."""
        picture, face = largest_face(picture)
        if face is None:
            return cls(None)
        others = [net.of(picture, face) if net is not None else None for net in (nets.dlib, nets.arcface)]
        return cls(sface_of(picture, face), face.landmarks, *others)

    def likeness(self, other: "FaceFound") -> dict[str, float]:
        """``sface`` and ``arcface_id`` (cosines), ``dlib_l2`` (a distance); without what either lacks."""
        found = {}
        for metric, name in (("sface", "sface"), ("arcface_id", "arcface")):
            a, b = getattr(self, name), getattr(other, name)
            if a is not None and b is not None:
                found[metric] = float(a @ b)
        if self.dlib is not None and other.dlib is not None:
            found["dlib_l2"] = descriptor_distance(self.dlib, other.dlib)
        return found


def recognised(nets: Nets) -> tuple[str, ...]:
    """Names of the identity metrics that are there."""
    return ("sface",) + (("dlib_l2",) if nets.dlib else ()) + (("arcface_id",) if nets.arcface else ())


def true_face(true: Truth, row: int, nets: Nets) -> FaceFound:
    """The face in a true view, looked for once."""
    if row not in true.faces:
        true.faces[row] = FaceFound.of(_hwc(true.pictures.rgb[row]), nets)
    return true.faces[row]


def face_metrics(made: Pictures, true: Truth, nets: Nets) -> dict[str, list[float]]:
    """Likeness of faces to the same true view, facial landmarks, and whether a face is found, up to `FACE_DEG`.

    Landmarks are those of the detector in both pictures, so that its own habits cancel out. What is found in true views
    is kept in ``true.faces``.
    """
    found: dict[str, list[float]] = {name: [] for name in (*recognised(nets), "landmarks", "face_found")}
    for k, azimuth in enumerate(true.cameras.azimuth.tolist()):
        row = dict.fromkeys(found, math.nan)
        if abs((azimuth + 180) % 360 - 180) <= FACE_DEG:
            own = FaceFound.of(_hwc(made.rgb[k]), nets)
            wanted = true_face(true, k, nets)
            if wanted.sface is not None:
                row["face_found"] = float(own.sface is not None)
            if wanted.sface is not None and own.sface is not None:
                row |= own.likeness(wanted)
                a, b = (torch.from_numpy(face.landmarks)[None] for face in (own, wanted))
                row["landmarks"] = float(landmark_error(a, b))
        for name, value in row.items():
            found[name].append(value)
    return found


def turned_likeness(rgb: Tensor, cameras: Cameras, photo: FaceFound, nets: Nets) -> dict[str, float]:
    """SFace of the views at +-30 degrees to the photo, as of heads of photos.

    A face that is turned is less like its front, the true one too: compare with the truth's.

    Args: rgb (V, 3, S, S) over white in [0, 1], views of ``cameras``; photo: the face in the input view of that size.
    Returns: ``sface_plus30``, ``sface_minus30``, cosines; NaN where either face is not found. Not differentiable.
    """
    at, found = cameras.level(), {}
    for side, azimuth in PHOTO_AZIMUTHS.items():
        if azimuth and azimuth % 360 in at:
            own = FaceFound.of(_hwc(rgb[at[azimuth % 360]]), nets)
            found[f"sface_{side}"] = own.likeness(photo).get("sface", math.nan)
    return found


@torch.no_grad()
def truth_metrics(true: Truth, nets: Nets) -> dict[str, float | None]:
    """What the true head itself scores where a head is set against no true view: names end in ``_truth``.

    Specks, warps and the likeness of turned faces have no best value of 0 or 1: heads are measured by these.

    Args: true: row 0 is the input view; what is found is kept in ``true.own``.
    Returns: those of `speck_metrics`, `consistency_metrics` and `turned_likeness`, without what ``nets.reasons`` names.
    """
    if not true.own:
        found = speck_metrics(true.pictures, true.cameras) | consistency_metrics(true.pictures, true.cameras, nets)
        found |= turned_likeness(true.pictures.rgb, true.cameras, true_face(true, 0, nets), nets)
        true.own.update({f"{name}_truth": value for name, value in found.items() if name not in nets.reasons})
    return true.own


@torch.no_grad()
def likeness_metrics(made: Pictures, same: Tensor, photo: Tensor, cameras: Cameras, nets: Nets) -> dict[str, float]:
    """How a head without a truth resembles its photo, by recognisers beside SFace and metrics with users' weights.

    Args: made: views of ``cameras``, 0 and +-30 degrees among them; same, photo: (1, 3, S, S) over white in [0, 1], the
        head from the photo's own camera, and the photo.
    Returns: ``dlib_l2.front``, ``dlib_l2.plus30``, ``dlib_l2.minus30``, ``arcface_id....`` likewise; ``clip_i``: mean
        cosine of all views and the photo; ``lpips``: of the photo's own view.
    """
    out = {}
    if nets.dlib is not None or nets.arcface is not None:
        at, wanted = cameras.level(), FaceFound.of(_hwc(photo[0]), nets)
        for side, azimuth in PHOTO_AZIMUTHS.items():
            likeness = FaceFound.of(_hwc(made.rgb[at[azimuth % 360]]), nets).likeness(wanted)
            out |= {f"{name}.{side}": likeness.get(name, math.nan) for name in recognised(nets)[1:]}
    if nets.clip is not None:
        views = torch.cat([nets.clip(part) for part in made.rgb.split(16)])
        out["clip_i"] = float((views @ nets.clip(photo)[0]).mean())
    if nets.lpips is not None:
        out["lpips"] = float(nets.lpips(same, photo))
    return out


def binned(values: dict[str, list[float]], azimuth: Sequence[float], elevation: Sequence[float]) -> dict:
    """{metric.bin: mean over the bin's views, None without any}; the input view, 0 and 0, is bin ``input``."""
    names = [
        "input" if abs(a) < 1e-3 and abs(e) < 1e-3 else bin_name(a) for a, e in zip(azimuth, elevation, strict=True)
    ]
    out: dict[str, float | None] = {}
    for metric, numbers in values.items():
        for name in ("input", *BINS):
            kept = [v for v, n in zip(numbers, names, strict=True) if n == name and math.isfinite(v)]
            out[f"{metric}.{name}"] = sum(kept) / len(kept) if kept else None
    return out


@torch.no_grad()
def consistency_metrics(
    made: Pictures, cameras: Cameras, nets: Nets, true_depth: Tensor | None = None
) -> dict[str, float | None]:
    """Warps between neighbours on the level ring, with the head's own depth and, where given, with the true one.

    Returns: ``self_warp_D``, ``truth_warp_D`` (mean absolute difference) and ``..._lpips_D`` by angle D.
    """
    at = cameras.level()
    net, out = nets.perceptual.get("alex"), {}
    depths = {"self": made.depth} | ({} if true_depth is None else {"truth": true_depth})
    for degrees in WARP_DEG:
        pairs = [(k, at[(a + degrees) % 360]) for a, k in at.items() if (a + degrees) % 360 in at]
        for name, depth in depths.items():
            values: dict[str, list[float]] = {}
            for i, j in pairs:
                c2w = cameras.c2w[i : i + 1], cameras.c2w[j : j + 1]
                fovy = cameras.fovy[i : i + 1], cameras.fovy[j : j + 1]
                error = warp_error(
                    made.rgb[i : i + 1], depth[i : i + 1], made.rgb[j : j + 1], depth[j : j + 1], c2w, fovy, net
                )
                for key in ("l1", "perceptual"):
                    if key in error and math.isfinite(float(error[key])):
                        values.setdefault(key, []).append(float(error[key]))
            for key, suffix in (("l1", ""), ("perceptual", "_lpips")):
                kept = values.get(key)
                out[f"{name}_warp{suffix}_{degrees}"] = sum(kept) / len(kept) if kept else None
    return out


@torch.no_grad()
def film_metrics(render: RenderFn, size: int, frames: int, device: torch.device | str) -> dict[str, float]:
    """``flicker_front`` and ``flicker_back``: turning by a degree a frame, in front of the face and behind the head."""
    out = {}
    for name, centre in (("front", 0.0), ("back", 180.0)):
        cameras = Cameras.ring([centre + k for k in range(-(frames // 2), frames // 2 + 1)], device)
        film = render_views(render, cameras, size)
        out[f"flicker_{name}"] = float(flicker(film.rgb, film.depth, cameras.c2w, cameras.fovy))
    return out


def surface_points(depth: Tensor, cameras: Cameras, count: int = SURFACE_POINTS) -> np.ndarray:
    """(count, 3) points in millimetres of what depth maps (V, S, S) see; every n-th, the same way each time."""
    rays_o, rays_d = get_rays(cameras.c2w, cameras.fovy, depth.shape[1], depth.shape[2])
    points = (rays_o + depth[..., None] * rays_d)[depth > 0]
    step = max(1, len(points) // count)
    return (1000 * METRES_PER_UNIT * points[::step]).cpu().double().numpy()


def head_metrics(render: RenderFn, true: Truth, nets: Nets, frames: int) -> tuple[dict, Pictures]:
    """All metrics of a head whose truth is known: {metric: value or None}, and its renders.

    Args: frames of each flicker film.
    """
    cameras, size = true.cameras, true.pictures.rgb.shape[-1]
    made = render_views(render, cameras, size)
    out = binned(view_metrics(made, true, nets), cameras.azimuth.tolist(), cameras.elevation.tolist())
    out |= consistency_metrics(made, cameras, nets, true.pictures.depth)
    out |= film_metrics(render, size, frames, cameras.c2w.device)
    out |= surface_distance(surface_points(made.depth, cameras), surface_points(true.pictures.depth, cameras))
    out |= behind_metrics(made.rgb, cameras) | speck_metrics(made, cameras)
    out |= turned_likeness(made.rgb, cameras, true_face(true, 0, nets), nets) | truth_metrics(true, nets)
    return finite(out, nets.reasons), made


def photo_view(result, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The head from the photo's own camera and the photo, (1, 3, size, size) over white, and where they count."""
    prepared, out = result.prepared, result.render_input_fn(size, size)
    made = (out["comp_rgb_fg"] + 1 - out["opacity"]).clamp(0, 1).permute(0, 3, 1, 2)
    stacked = torch.cat([prepared.rgb * prepared.alpha + 1 - prepared.alpha, prepared.alpha * prepared.valid], dim=2)
    small = F.interpolate(
        stacked.permute(2, 0, 1)[None].to(made), (size, size), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)
    return made, small[:, :3], small[:, 3:]


@torch.no_grad()
def photo_metrics(result, size: int, nets: Nets) -> dict[str, float]:
    """How well the photo is met by the head from the camera that was fitted, and how far that camera is from the front.

    Returns: ``photo_psnr_db``, ``photo_stlpips_alex``, ``pose_deg``: the angle to the canonical camera, which took the
        synthetic photos. A head whose camera is wrong is turned against the truth, and all other views pay for it.
    """
    made, photo, mask = photo_view(result, size)
    c2w = result.camera.pose()[0].detach().cpu()
    front = orbit_c2w(torch.zeros(1), torch.zeros(1))
    cosine = ((c2w[0, :3, :3].T @ front[0, :3, :3]).trace() - 1) / 2
    found = {"photo_psnr_db": float(image.psnr(made, photo, mask)), "pose_deg": math.degrees(math.acos(min(1, cosine)))}
    if "alex" in nets.perceptual:
        found["photo_stlpips_alex"] = float(nets.perceptual["alex"](made, photo, mask))
    return found


def behind_metrics(rgb: Tensor, cameras: Cameras) -> dict[str, float]:
    """``janus_rate`` and ``janus_score`` over the level views from behind."""
    rows = {a: k for a, k in cameras.level().items() if BACK_AZIMUTH_DEG < a < 360 - BACK_AZIMUTH_DEG}
    scores = behind_scores([_hwc(rgb[k]) for k in rows.values()], list(rows))
    return {"janus_rate": janus_rate(scores), "janus_score": max(scores)}


def speck_metrics(made: Pictures, cameras: Cameras) -> dict[str, float]:
    """``chroma_noise``: coloured specks in the level views beyond 30 degrees, which no photo shows, in levels of 255.

    Within the head's own outline, 3 pixels in. What is right depends on hair and clothes: compare with the truth's, or
    with other heads of the same photo.
    """
    rows = [k for a, k in cameras.level().items() if min(a, 360 - a) > BINS["front"][1]]
    alpha = made.alpha[rows]
    inside = 1 - F.max_pool2d((alpha < 0.95).to(alpha), 7, stride=1, padding=3)
    there = inside.sum(dim=(1, 2, 3)) > LEAST_SPECK_PIXELS
    if not bool(there.any()):
        return {"chroma_noise": math.nan}
    return {"chroma_noise": 255 * float(image.chroma_noise(made.rgb[rows][there], inside[there]).mean())}


def finite(values: dict, reasons: dict[str, str]) -> dict:
    """Values with None for what is not finite, and None for every metric that has a reason to be missing."""
    out = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
    there = {key for name in out for key in (name, name.split(".")[0])}
    return out | {name: None for name in reasons if name not in there}
