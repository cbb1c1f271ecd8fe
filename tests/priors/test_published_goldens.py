"""The EG3D and PanoHead generators against reference arrays: random weights, float32 on a CPU, stated tolerances."""
import json
import zlib

import numpy as np
import pytest
import torch
from portrait_diffusion.ops.plane_layouts import layout_features
from portrait_diffusion.priors.published.fields import decode_published
from portrait_diffusion.priors.published.generator import PublishedGenerator
from portrait_diffusion.priors.published.image import generate, render_image, shift_label
from portrait_diffusion.priors.published.marching import rays_of_label, render_features
from portrait_diffusion.priors.published.sizes import render_options, sizes_of
from safetensors.torch import load_file

from priors.published_samples import GOLDENS

pytestmark = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason=f"the reference arrays are not at {GOLDENS} (set PORTRAIT_GAN_GOLDENS)"
)
VISIBLE = 0.01  # expected depth is compared where opacity exceeds this


def state_of(folder, config) -> dict[str, torch.Tensor]:
    """Stored weights, or those that `state_recipe` makes; checked by their checksums."""
    if (folder / "state.safetensors").is_file():
        return load_file(folder / "state.safetensors")
    state = {}
    for entry in config["state_recipe"]:
        if entry["kind"] == "fir":
            value = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
        else:
            u = np.random.RandomState(entry["seed"]).random_sample(int(np.prod(entry["shape"])))  # noqa: NPY002
            value = entry["offset"] + entry["scale"] * np.sqrt(3) * (2 * u - 1)
            value = value.astype(np.float32).reshape(entry["shape"])
        assert f"{zlib.crc32(value.tobytes()):08x}" == entry["crc32"], entry["key"]
        state[entry["key"]] = torch.from_numpy(value.copy())
    for patch in config["state_patches"]:
        row = state[patch["key"]][patch["row"]]
        row.copy_(row * patch["multiply"] if "multiply" in patch else torch.tensor(patch["set"]))
    return state


class Reference:
    """Arrays and tolerances of one configuration; `same` compares one and remembers its name."""

    def __init__(self, name: str):
        folder = GOLDENS / name
        self.config = json.loads((folder / "config.json").read_text())
        self.arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "golden.npz").items()}
        state = state_of(folder, self.config)
        sizes = sizes_of({k: tuple(v.shape) for k, v in state.items()})
        assert sizes.family == self.config["family"]
        options = render_options(
            sizes.family, self.config["rendering_kwargs"], self.config["neural_rendering_resolution"]
        )
        self.generator = PublishedGenerator.load(state, sizes, options)
        self.left = set(self.config["tolerance"])

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]

    def same(self, key: str, value: torch.Tensor, where: torch.Tensor | None = None) -> None:
        wanted = self[key]
        error = (value.reshape(wanted.shape) - wanted).abs()
        if where is not None:
            error = error[where.reshape(wanted.shape)]
        assert error.numel() and error.max() <= self.config["tolerance"][key], (key, float(error.max()))
        self.left.discard(key)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def check_mapping(ref: Reference, prefix: str, rows) -> None:
    g, z, c = ref.generator, ref["z"], ref["c_cond"]
    ref.same(f"{prefix}_psi1", rows(g.map(z, c)))
    ref.same(f"{prefix}_psi07", rows(g.map(z, c, 0.7)))
    if g.sizes.camera_shift:
        ref.same("t_delta_psi1", g.camera_shift(z, c))
        ref.same("t_delta_psi07", g.camera_shift(z, c, 0.7))


def check_points(ref: Reference, planes: list) -> None:
    g = ref.generator
    coords = ref["points"][None] * (2 / g.options.box_warp)
    features = layout_features(g.sizes.family, planes, coords)
    sigma, feature = decode_published(features, g.decoder.weights(), g.options.sigmoid)
    ref.same("point_sigma", sigma)
    ref.same("point_feature", feature)


@pytest.mark.parametrize("name", ["eg3d_small", "panohead_small"])
def test_small_generators(name):
    ref = Reference(name)
    g, family, ws = ref.generator, ref.config["family"], ref["ws_plus"][:1]
    check_mapping(ref, "ws", lambda ws: ws)
    ref.same("ws_psi07_cutoff3", g.map(ref["z"], ref["c_cond"], 0.7, 3))
    synthesis = g.backbone.synthesis
    x = image = None
    for block, rows in synthesis.steps(ws):
        x, image = block(x, image, rows)
        size = x.shape[-1]
        step = 4 if size >= 16 else 1
        ref.same(f"block_b{size}_x", x[:, :, ::step, ::step])
        if size < 32:
            ref.same(f"block_b{size}_img", image[:, :, ::step, ::step])
    ref.same("planes", synthesis(ws))
    ref.same("planes_id1_sub4", synthesis(ref["ws_plus"][1:])[:, :, ::4, ::4])
    for psi in ("psi1", "psi07"):
        ref.same(f"planes_{psi}_sub4", synthesis(ref[f"ws_{psi}"][:1])[:, :, ::4, ::4])
    ref.same("planes_nonoise_sub4", synthesis(ws, noise=False)[:, :, ::4, ::4])

    planes = g.planes(ws)
    check_points(ref, planes)
    coords = ref["points"][None] * (2 / g.options.box_warp)
    alone = [planes[0] * torch.eye(3)[k].view(1, 3, *[1] * (planes[0].ndim - 2)) for k in range(3)]
    ref.same("point_plane_features", torch.cat([3 * layout_features(family, [p], coords) for p in alone]))
    if family == "panohead":
        matrix, bias = g.torgb.affine_map(ws[:, -1])
        ref.same("torgb_matrix", matrix)
        ref.same("torgb_bias", bias)
        ref.same("background", g.background(ws))
        ref.same("c_shifted_psi07", shift_label(ref["c_cond"], g.camera_shift(ref["z"], ref["c_cond"], 0.7)))
    check_small_images(ref, planes, ws)
    assert not ref.left, f"not compared: {sorted(ref.left)}"


def check_small_images(ref: Reference, planes: list, ws: torch.Tensor) -> None:
    g, family = ref.generator, ref.config["family"]
    size = g.options.raw_resolution
    rays_o, rays_d = rays_of_label(ref["c"], size)
    ref.same("ray_origin", rays_o[:, 0])
    ref.same("ray_direction", rays_d)

    def march(k: int, *draws) -> dict:
        one = slice(k, k + 1)
        return render_features(family, planes, g.decoder.weights(), rays_o[one], rays_d[one], g.options, *draws)

    for k in (k for k in range(len(rays_o)) if f"samples_pose{k}_depth_coarse" in ref.arrays):
        out, prefix = march(k), f"samples_pose{k}"
        ref.same(f"{prefix}_depth_coarse", out["coarse"]["depth"])
        ref.same(f"{prefix}_sigma_coarse", out["coarse"]["sigma"])
        ref.same(f"{prefix}_weight_coarse", out["coarse"]["weights"])
        ref.same(f"{prefix}_depth_all", out["depth_all"])
        ref.same(f"{prefix}_sigma_all", out["sigma_all"])
        ref.same(f"{prefix}_weight_all", out["weights"])
        if k == 0:
            ref.same("samples_pose0_feature_all_rays8", out["features_all"][:, ::32])

    def compare(prefix: str, out: dict) -> None:
        for key, value in out.items():
            if f"{prefix}_{key}" in ref.arrays:
                ref.same(f"{prefix}_{key}", value, out["opacity"] > VISIBLE if key == "depth" else None)

    def image(k: int, **settings) -> dict:
        return render_image(g, ws, ref["c"][k : k + 1], planes=planes, **settings)

    def joined(outs: list[dict]) -> dict:
        return {key: torch.cat([out[key] for out in outs]) for key in outs[0]}

    compare("det", joined([image(k) for k in range(len(rays_o))]))
    compare("nrr8", image(1, size=8))
    compare("nrr32", image(1, size=32))
    draws = ref["jit_coarse"][None], ref["jit_fine"][None]
    compare("jit", image(1, jitter=draws[0], quantiles=draws[1]))
    marched = march(1, *draws)
    ref.same("jit_depth_all", marched["depth_all"])
    ref.same("jit_weight_all", marched["weights"])
    compare("onepass", image(1, samples=(g.options.coarse, 0)))
    z, c = ref["z"], ref["c_cond"]
    compare("forward", joined([generate(g, z[i : i + 1], c[i : i + 1], c[i : i + 1], 0.7) for i in range(2)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eg3d_full", "panohead_full"])
def test_full_generators(name):
    ref = Reference(name)
    g, ws = ref.generator, ref["ws_plus"]
    check_mapping(ref, "w", lambda ws: ws[:, 0])
    image = g.backbone.synthesis(ws)[0]
    ref.same("planes_sub", image[:, 5::16, 3::16])
    ref.same("planes_mean", image.double().mean(dim=(1, 2)).float())
    ref.same("planes_std", image.double().std(dim=(1, 2), unbiased=False).float())
    planes = g.planes(ws)
    check_points(ref, planes)
    background = g.background(ws)
    if background is not None:
        ref.same("background_sub4", background[0, :, 1::4, 2::4])
    outs = [render_image(g, ws, label[None], planes=planes, background=background) for label in ref["c"]]
    out = {key: torch.cat([o[key] for o in outs]) for key in outs[0]}
    ref.same("det_feature_sub4", out["feature"][:, :, 1::4, 2::4])
    ref.same("det_opacity", out["opacity"])
    ref.same("det_depth", out["depth"], out["opacity"] > VISIBLE)
    ref.same("det_raw", out["raw"])
    if "mask" in out:
        ref.same("det_mask", out["mask"])
    ref.same("det_image_sub8", out["image"][:, :, 3::8, 5::8])
    ref.same("det_image_crop48", out["image"][:, :, 232:280, 232:280])
    ref.same("det_image_corner16", out["image"][:, :, :16, :16])
    assert not ref.left, f"not compared: {sorted(ref.left)}"
