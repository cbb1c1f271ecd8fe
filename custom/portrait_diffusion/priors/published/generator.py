"""The published generators as one module: latent to planes, decoder, background, super-resolution."""
import torch
from torch import Tensor, nn

from ...errors import UsageError
from .layers import FullyConnected, PlainConv1x1, ToRGB, low_pass_kernel
from .plain_values import shown
from .pyramid import PyramidSynthesis
from .sizes import POSE_BRANCH, RenderOptions, Sizes
from .synthesis import Mapping, SuperResolution, Synthesis


class Backbone(nn.Module):
    """Mapping network and plane generator, under their published names."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        if sizes.family == "pyramid":
            self.synthesis = PyramidSynthesis(sizes.w_dim, sizes.backbone, sizes.plane_channels)
        else:
            self.synthesis = Synthesis(sizes.w_dim, sizes.backbone, sizes.plane_channels)
        self.mapping = Mapping(sizes.z_dim, sizes.c_dim, sizes.w_dim)


class Decoder(nn.Module):
    """Two equalised layers with a softplus between them: raw density, then features. Args: (input, hidden, output)."""

    def __init__(self, sizes: tuple[int, int, int]):
        super().__init__()
        c_in, hidden, c_out = sizes
        self.net = nn.ModuleDict({"0": FullyConnected(c_in, hidden), "2": FullyConnected(hidden, c_out)})

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Effective hidden weight and bias, output weight and bias."""
        return (*self.net["0"].effective(), *self.net["2"].effective())


class PoseBranch(nn.Module):
    """The pyramid's body-pose head: held so that a file loads whole, never evaluated (poses are neutral here)."""

    def __init__(self):
        super().__init__()
        layers = {name.split(".")[-1]: FullyConnected(c_in, c_out) for name, (c_out, c_in) in POSE_BRANCH.items()}
        self.net = nn.ModuleDict(layers)


class PublishedGenerator(nn.Module):
    """EG3D, PanoHead, SphereHead or the pyramid, with the names of their state dicts.

    Parameters are not initialised: `load` fills them. Args: sizes; options for rendering.
    """

    def __init__(self, sizes: Sizes, options: RenderOptions):
        super().__init__()
        self.sizes, self.options = sizes, options
        self.backbone = Backbone(sizes)
        self.superresolution = SuperResolution(sizes.sr_channels, sizes.w_dim, sizes.sr_resolution)
        self.decoder = Decoder(sizes.decoder)
        if sizes.features:
            self.torgb = ToRGB(sizes.features, 3, sizes.w_dim)
        if sizes.background:
            batched = sizes.family == "pyramid"
            self.bcg_synthesis = Synthesis(sizes.w_dim, sizes.background, sizes.background_channels, batched)
        if sizes.camera_shift:
            self.t_mapping = Mapping(sizes.z_dim, sizes.c_dim, 3, lr_mul=1.0, last_linear=True)
        if sizes.family == "spherehead":
            c_in, hidden, c_out = sizes.sphere_channels
            self.ConvA = nn.Sequential(PlainConv1x1(c_in, hidden), PlainConv1x1(hidden, c_out))
            self.ConvB = nn.Sequential(PlainConv1x1(c_in, hidden), PlainConv1x1(hidden, c_out))
        if sizes.pose_branch:
            self.pose_branch = PoseBranch()

    @classmethod
    def load(cls, state: dict[str, Tensor], sizes: Sizes, options: RenderOptions) -> "PublishedGenerator":
        """A generator in evaluation mode that holds these tensors (not copies), without gradients.

        Args: state: published names to tensors; names and shapes must be exactly the network's.
        Raises: UsageError naming the first tensor that is missing, superfluous or of another shape.
        """
        with torch.device("meta"):
            generator = cls(sizes, options)
        check_state({k: tuple(v.shape) for k, v in state.items()}, generator, sizes.family)
        check_filters(state, sizes.family)
        generator.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
        return generator.requires_grad_(False).eval()

    @property
    def num_ws(self) -> int:
        """Latent rows of the plane generator; the last also drives colour head and super-resolution."""
        return self.backbone.synthesis.num_ws

    def map(self, z: Tensor, c: Tensor, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Latent rows of z under a condition.

        Args:
            z: (N,z_dim) standard normal; c: (N,c_dim) condition (camera, and body pose in the pyramid).
            truncation: pull towards the mean latent, 1 is none; cutoff: on so many first rows only.
        Returns: ws (N,num_ws,w_dim).
        """
        w = self.backbone.mapping(z, c * self.options.c_scale)
        ws = w[:, None].repeat(1, self.num_ws, 1)
        if truncation != 1:
            rows = self.num_ws if cutoff is None else cutoff
            ws[:, :rows] = torch.lerp(self.backbone.mapping.w_avg, ws[:, :rows], truncation)
        return ws

    def planes(self, ws: Tensor, noise: bool = True) -> list[Tensor]:
        """Plane features of latent rows.

        Args: ws (N,num_ws,w_dim); noise: add the stored noise maps.
        Returns: EG3D one (N,3,C,R,R); PanoHead one (N,3,C,D,R,R); SphereHead two (N,3,C,R,R), sphere A and B; pyramid
            levels (N,3,C,D,R,R), coarsest first.
        """
        out = self.backbone.synthesis(ws, noise)
        channels = self.sizes.decoder[0]
        if self.sizes.family == "spherehead":
            return [conv(out).unflatten(1, (3, channels)) for conv in (self.ConvA, self.ConvB)]
        if self.sizes.family == "pyramid":
            return [level.unflatten(2, (channels, -1)) for level in out]
        planes = out.unflatten(1, (3, -1))
        return [planes if self.sizes.family == "eg3d" else planes.unflatten(2, (channels, -1))]

    def background(self, ws: Tensor) -> Tensor | None:
        """(N,C,R,R) features of the background, from the first rows; None for a family without."""
        return self.bcg_synthesis(ws) if self.sizes.background else None

    def camera_shift(self, z: Tensor, c: Tensor, truncation: float = 1.0) -> Tensor:
        """(N,3) shift of the camera, GAN world frame (PanoHead, SphereHead); zeros for the others."""
        if not self.sizes.camera_shift:
            return z.new_zeros(len(z), 3)
        return self.t_mapping(z, c * self.options.c_scale, truncation)


def published_shapes(generator: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything a generator's state dict holds."""
    return {key: tuple(value.shape) for key, value in generator.state_dict().items()}


def check_state(got: dict[str, tuple[int, ...]], generator: nn.Module, family: str) -> None:
    """Raise UsageError unless names and shapes are the network's."""
    wanted = published_shapes(generator)
    for key in wanted.keys() - got.keys():
        raise UsageError(f"The {family} checkpoint lacks '{key}'; the file is incomplete, download it again.")
    for key in got.keys() - wanted.keys():
        raise UsageError(
            f"The {family} checkpoint holds '{shown(key, 80)}', which this network has no place for; give a file "
            "listed in docs/priors.md."
        )
    for key, shape in wanted.items():
        if got[key] != shape:
            raise UsageError(f"'{key}' of the {family} checkpoint has shape {got[key]}, expected {shape}; give a file "
                             "listed in docs/priors.md.")  # fmt: skip


def check_filters(state: dict[str, Tensor], family: str) -> None:
    """Raise UsageError unless every stored low-pass filter is the published one, which the layers have built in.

    Filters whose numbers have not been read (device ``meta``) pass.
    """
    for key, value in state.items():
        if not key.endswith("resample_filter") or value.is_meta:
            continue
        if not torch.allclose(value.float().cpu(), low_pass_kernel(), atol=1e-6):
            raise UsageError(
                f"'{key}' of the {family} checkpoint is not the filter (1, 3, 3, 1) of the published models; give a "
                "file listed in docs/priors.md."
            )
