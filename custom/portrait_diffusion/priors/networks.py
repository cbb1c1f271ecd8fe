"""Networks of the bundled 3D-aware GAN prior: mapping, tri-plane synthesis, decoder, encoder, discriminator.

The layout follows the published ideas, in our own code: style modulation and demodulation (Karras et al., "Analyzing
and Improving the Image Quality of StyleGAN", CVPR 2020, section 2.2), a 2D generator whose channels are three planes
(Chan et al., "Efficient Geometry-aware 3D Generative Adversarial Networks", CVPR 2022, section 4), a patch
discriminator that is told camera and patch (Skorokhodov et al., "EpiGRAF", NeurIPS 2022, section 3.3). Sizes are ours
and small: everything runs on a CPU.
"""
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .latent_space import draw, fit_gaussian


@dataclass
class PriorSpec:
    """Sizes of the bundled prior; stored beside the weights, so that a file describes itself."""

    z_dim: int = 128
    w_dim: int = 256
    mapping_layers: int = 4
    plane_channels: int = 32
    plane_resolution: int = 128
    decoder_hidden: int = 64
    channels: dict = field(default_factory=lambda: {4: 256, 8: 256, 16: 256, 32: 256, 64: 128, 128: 64})
    frontal_layers: int = 2
    """Layers of the frontal grid, from the back of the box to its front: what is behind a face has its own features."""
    encoded_layers: int = 1
    """Foremost of these layers that the encoder adds features to: what the photo shows."""
    encoder_channels: dict = field(default_factory=lambda: {128: 48, 64: 96, 32: 160, 16: 224, 8: 224, 4: 224})
    injected: tuple = (16,)
    """Resolutions at which the encoder adds features to the trunk of the synthesis network (besides W+): all planes."""
    frontal: tuple = (32, 64, 128)
    """Resolutions at which the encoder adds features to the `encoded_layers`."""
    encoder_input: int = 256
    latent_rank: int = 64
    """Axes of the Gaussian over W+ from which random heads are drawn."""

    def __post_init__(self):
        self.channels = {int(k): int(v) for k, v in self.channels.items()}
        self.encoder_channels = {int(k): int(v) for k, v in self.encoder_channels.items()}
        self.injected = tuple(int(r) for r in self.injected)
        self.frontal = tuple(int(r) for r in self.frontal)

    @property
    def feature_channels(self) -> dict:
        """Channels of the encoder's feature maps by resolution."""
        frontal = self.encoded_layers * self.plane_channels
        return {r: self.channels[r] for r in self.injected} | {r: frontal for r in self.frontal}

    @property
    def resolutions(self) -> list:
        return [2**i for i in range(2, int(math.log2(self.plane_resolution)) + 1)]

    @property
    def num_ws(self) -> int:
        """Style vectors of W+: one per convolution, one for the last plane output."""
        return 2 * len(self.resolutions)


class Linear(nn.Module):
    """Fully connected layer with run-time scaling of its weights ("equalized learning rate", Karras et al. 2018)."""

    def __init__(self, d_in: int, d_out: int, bias_init: float = 0.0, lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((d_out,), bias_init / lr_multiplier))
        self.gain = lr_multiplier / math.sqrt(d_in)
        self.lr_multiplier = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.lr_multiplier)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2, scaled by sqrt(2) to keep the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2.0)


class MappingNetwork(nn.Module):
    """z ~ N(0, I) to the intermediate latent w; keeps a moving average of w, for truncation."""

    def __init__(self, spec: PriorSpec):
        super().__init__()
        dims = [spec.z_dim] + [spec.w_dim] * spec.mapping_layers
        self.layers = nn.ModuleList([Linear(a, b, lr_multiplier=0.3) for a, b in zip(dims[:-1], dims[1:])])
        self.register_buffer("w_mean", torch.zeros(spec.w_dim))

    def forward(self, z: Tensor) -> Tensor:
        """Args: z (B, z_dim). Returns: w (B, w_dim)."""
        x = z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = lrelu(layer(x))
        return x

    @torch.no_grad()
    def track(self, w: Tensor, decay: float = 0.998) -> None:
        """Move the average of w towards the mean of a batch."""
        self.w_mean.lerp_(w.float().mean(dim=0), 1.0 - decay)


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style and whose output is demodulated to unit variance.

    y = d(s) * conv(s * x), d_o = (sum_{i,k} (w_oik s_i)^2 + eps)^(-1/2); Karras et al. 2020, equations 1-3.
    """

    def __init__(self, c_in: int, c_out: int, w_dim: int, kernel: int = 3, demodulate: bool = True):
        super().__init__()
        self.affine = Linear(w_dim, c_in, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.gain = 1.0 / math.sqrt(c_in * kernel * kernel)
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.demodulate = demodulate
        self.padding = kernel // 2

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w)  # (B, c_in)
        style = style if style.dtype == torch.float64 else style.float()
        weight = self.weight * self.gain
        y = F.conv2d(x * style.to(x.dtype)[:, :, None, None], weight.to(x.dtype), padding=self.padding)
        if self.demodulate:
            energy = style.square() @ weight.to(style.dtype).square().sum(dim=(2, 3)).t()  # (B, c_out)
            y = y * torch.rsqrt(energy + 1e-8).to(x.dtype)[:, :, None, None]
        return y + self.bias.to(x.dtype)[:, None, None]


def upsample2(x: Tensor) -> Tensor:
    """Twice the resolution, bilinear (as F.interpolate with align_corners=False, but fast in bfloat16 on a GPU)."""
    for axis in (2, 3):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        before = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
        after = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), last], dim=axis)
        pair = torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25)
        x = torch.stack(pair, dim=axis + 1).flatten(axis, axis + 1)
    return x


class SynthesisNetwork(nn.Module):
    """W+ (and optional spatial features of an encoder) to three feature planes and a frontal grid.

    A tri-plane gives the front and the back of a head the same frontal features, which is one source of faces on the
    back of heads; the grid's layers along depth separate them (the idea of tri-grids: An et al., "PanoHead", CVPR 2023,
    section 3.2; here for the frontal plane only).
    """

    def __init__(self, spec: PriorSpec):
        super().__init__()
        self.spec = spec
        ch, out = spec.channels, (3 + spec.frontal_layers) * spec.plane_channels
        self.const = nn.Parameter(torch.randn(ch[4], 4, 4))
        self.conv0, self.conv1, self.to_planes = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for res in spec.resolutions:
            if res > 4:
                self.conv0[str(res)] = ModulatedConv(ch[res // 2], ch[res], spec.w_dim)
            self.conv1[str(res)] = ModulatedConv(ch[res], ch[res], spec.w_dim)
            self.to_planes[str(res)] = ModulatedConv(ch[res], out, spec.w_dim, kernel=1, demodulate=False)

    def forward(self, ws: Tensor, features: dict | None = None) -> list[Tensor]:
        """Feature planes of a head.

        Args:
            ws: (B, num_ws, w_dim) style vectors.
            features: optional {resolution: (B, feature_channels[resolution], resolution, resolution)}; those of
                `spec.injected` are added before the first convolution's activation, those of `spec.frontal` to the
                outputs of the foremost frontal layers, from back to front. Absent resolutions add nothing.
        Returns: planes (B, 3, C, R, R) and frontal grid (B, 1, C, L, R, R), a pyramid for `ops.triplane.sample_planes`.
        """
        features = features or {}
        unseen = 3 + self.spec.frontal_layers - self.spec.encoded_layers  # planes and layers the encoder does not touch
        front = unseen * self.spec.plane_channels
        x = self.const.to(ws.dtype).expand(ws.shape[0], -1, -1, -1)
        planes, index = None, 0
        for res in self.spec.resolutions:
            if res > 4:
                x = self.conv0[str(res)](upsample2(x), ws[:, index])
                index += 1
                if res in self.spec.injected and res in features:
                    x = x + features[res].to(x.dtype)
                x = lrelu(x)
            x = lrelu(self.conv1[str(res)](x, ws[:, index]))
            index += 1
            skip = self.to_planes[str(res)](x, ws[:, min(index, self.spec.num_ws - 1)])
            if res in self.spec.frontal and res in features:
                skip = torch.cat([skip[:, :front], skip[:, front:] + features[res].to(skip.dtype)], dim=1)
            planes = skip if planes is None else upsample2(planes) + skip
        b, _, h, w = planes.shape
        planes = planes.view(b, -1, self.spec.plane_channels, h, w)
        return [planes[:, :3], planes[:, 3:].transpose(1, 2)[:, None]]


class PlaneDecoder(nn.Module):
    """Weights of the small MLP that turns a plane feature into density and colour (used by ops.triplane.decode)."""

    DENSITY_GAIN = 48.0
    """Fixed gain of the raw density. An opaque surface in a box of 0.72 needs a density of several hundred; without the
    gain the planes grow until they provide it (a standard deviation near 50 was seen), and half precision is lost on
    colours."""

    CHROMA_GAIN = 0.3
    """Gain of the two colour differences against brightness: portraits vary mostly in brightness, and small networks
    answer with rainbow blotches when all three colours are learnt alike."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.hidden = Linear(channels, hidden)
        self.out = Linear(hidden, 4)
        mix = torch.zeros(4, 4)
        mix[0, 0] = self.DENSITY_GAIN
        mix[1:, 1] = 1.0  # brightness; the columns are orthogonal
        mix[1:, 2] = self.CHROMA_GAIN * math.sqrt(1.5) * torch.tensor([1.0, -1.0, 0.0])
        mix[1:, 3] = self.CHROMA_GAIN * math.sqrt(0.5) * torch.tensor([1.0, 1.0, -2.0])
        self.register_buffer("out_mix", mix)

    def weights(self) -> tuple:
        """Effective (w1, b1, w2, b2): run-time gains and the mixing of the outputs folded in."""
        out = torch.cat([self.out.weight * self.out.gain, self.out.bias[:, None]], dim=1)
        out = (self.out_mix[:, :, None] * out).sum(dim=1)  # not a matrix product, which TF32 would round
        return self.hidden.weight * self.hidden.gain, self.hidden.bias, out[:, :-1], out[:, -1]


class Generator(nn.Module):
    """Mapping, synthesis and decoder: the GAN prior."""

    def __init__(self, spec: PriorSpec | None = None):
        super().__init__()
        self.spec = spec or PriorSpec()
        self.mapping = MappingNetwork(self.spec)
        self.synthesis = SynthesisNetwork(self.spec)
        self.decoder = PlaneDecoder(self.spec.plane_channels, self.spec.decoder_hidden)
        shape = self.spec.num_ws, self.spec.w_dim
        self.register_buffer("latent_mean", torch.zeros(shape))
        self.register_buffer("latent_axes", torch.zeros(self.spec.latent_rank, *shape))

    @torch.no_grad()
    def set_latent_gaussian(self, ws: Tensor) -> None:
        """Fit the Gaussian of random heads to the W+ (N, num_ws, w_dim) of many heads."""
        mean, axes = fit_gaussian(ws, self.spec.latent_rank)
        self.latent_mean.copy_(mean)
        self.latent_axes.copy_(axes)

    def random_heads(self, z: Tensor, truncation: float = 0.7) -> Tensor:
        """W+ (B, num_ws, w_dim) of standard normal z (B, latent_rank), pulled to the mean by `truncation` in [0, 1]."""
        return draw(self.latent_mean, self.latent_axes, z, truncation)

    def broadcast(self, w: Tensor, truncation: float = 1.0) -> Tensor:
        """w (B, w_dim) to W+ (B, num_ws, w_dim), pulled to the mean by `truncation` in [0, 1]."""
        w = torch.lerp(self.mapping.w_mean.to(w.dtype), w, truncation)
        return w[:, None, :].expand(-1, self.spec.num_ws, -1)


class DownBlock(nn.Module):
    """Residual block that halves the resolution (average pooling)."""

    def __init__(self, c_in: int, c_out: int, norm: bool):
        super().__init__()
        self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False)
        groups = math.gcd(16, c_out)
        self.norm0 = nn.GroupNorm(groups, c_out) if norm else nn.Identity()
        self.norm1 = nn.GroupNorm(groups, c_out) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2)
        y = F.leaky_relu(self.norm0(self.conv0(x)), 0.2)
        y = self.norm1(self.conv1(y))
        return F.leaky_relu((y + self.skip(x)) * math.sqrt(0.5), 0.2)


class Attention(nn.Module):
    """Residual multi-head self-attention over the positions of a small feature map (torch's scaled dot product)."""

    def __init__(self, channels: int, resolution: int, heads: int = 4):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(16, channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.position = nn.Parameter(torch.zeros(1, channels, resolution, resolution))
        self.heads = heads
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x + self.position)).view(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, heads, hw, c/heads)
        return x + self.proj(y.transpose(-1, -2).reshape(b, c, h, w))


class Encoder(nn.Module):
    """Aligned portrait to W+ and spatial features: what the photo shows, in the generator's own coordinates.

    The input is the portrait resampled onto the frontal (x, y) plane (`priors.alignment.encoder_input`), so that a
    position in the feature maps is one in the frontal plane; channels: rgb * alpha, alpha, valid, yaw / 90, pitch / 90.
    """

    IN_CHANNELS = 7

    def __init__(self, spec: PriorSpec | None = None):
        super().__init__()
        self.spec = spec = spec or PriorSpec()
        ch = spec.encoder_channels
        self.stem = nn.Conv2d(self.IN_CHANNELS, ch[128], 5, stride=2, padding=2)
        self.down = nn.ModuleDict({str(r): DownBlock(ch[2 * r], ch[r], norm=True) for r in (64, 32, 16, 8, 4)})
        self.attention = Attention(ch[16], 16)
        code = 256
        self.to_w = nn.Linear(ch[4] * 16, code)
        self.w_base = nn.Linear(code, spec.w_dim)
        self.w_delta = nn.Linear(code, spec.num_ws * spec.w_dim)
        self.up, self.merge, self.inject = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for res in (8, 16, 32, 64, 128):
            if res <= max(spec.feature_channels, default=0):
                self.up[str(res)] = nn.Conv2d(ch[res // 2], ch[res], 1)
                self.merge[str(res)] = nn.Conv2d(2 * ch[res], ch[res], 3, padding=1)
        for res, channels in spec.feature_channels.items():
            self.inject[str(res)] = nn.Conv2d(ch[res], channels, 1)
            nn.init.zeros_(self.inject[str(res)].weight)
            nn.init.zeros_(self.inject[str(res)].bias)
        nn.init.zeros_(self.w_delta.weight)
        nn.init.zeros_(self.w_delta.bias)

    def forward(self, x: Tensor) -> tuple:
        """Latent and spatial features of a portrait.

        Args: x (B, 7, S, S), S = spec.encoder_input.
        Returns: ws (B, num_ws, w_dim), its layer-wise part delta of the same shape, features {resolution: map}.
        """
        maps = {128: F.leaky_relu(self.stem(x), 0.2)}
        for res in (64, 32, 16, 8, 4):
            maps[res] = self.down[str(res)](maps[2 * res])
            if res == 16:
                maps[res] = self.attention(maps[res])
        code = F.leaky_relu(self.to_w(maps[4].flatten(1)), 0.2)
        delta = self.w_delta(code).view(-1, self.spec.num_ws, self.spec.w_dim)
        ws = self.w_base(code)[:, None, :] + delta
        features, top = {}, maps[4]
        for res in (8, 16, 32, 64, 128):
            if str(res) not in self.up:
                break
            lifted = self.up[str(res)](upsample2(top))
            top = F.leaky_relu(self.merge[str(res)](torch.cat([lifted, maps[res]], dim=1)), 0.2)
            if str(res) in self.inject:
                features[res] = self.inject[str(res)](top)
        return ws, delta, features


class Discriminator(nn.Module):
    """Camera- and patch-conditioned critic of 64² patches (rgb over white, alpha), with a projection head.

    Condition: sin/cos azimuth, elevation, patch scale and upper left corner (Miyato & Koyama, "cGANs with Projection
    Discriminator", ICLR 2018). The minibatch standard deviation (Karras et al., "Progressive Growing of GANs", ICLR
    2018) is that of the rows i and i + B / 2 in a batch of a multiple of 4, else 0.
    """

    CONDITIONS = 6

    def __init__(self, base: int = 96, limit: int = 320, resolution: int = 64):
        super().__init__()
        widths, res = [base], resolution
        while res > 4:
            widths.append(min(limit, widths[-1] * 2))
            res //= 2
        self.stem = nn.Conv2d(4, base, 3, padding=1)
        self.blocks = nn.ModuleList([DownBlock(a, b, norm=False) for a, b in zip(widths[:-1], widths[1:])])
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.flat = nn.Linear(widths[-1] * 16, 256)
        self.score = nn.Linear(256, 1)
        self.embed = nn.Sequential(nn.Linear(self.CONDITIONS, 128), nn.LeakyReLU(0.2), nn.Linear(128, 256))

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        """Args: image (B, 4, 64, 64) in [0, 1], condition (B, 6). Returns: logits (B,)."""
        x = F.leaky_relu(self.stem(image * 2 - 1), 0.2)
        for block in self.blocks:
            x = block(x)
        b, _, h, w = x.shape
        group = 2 if b % 4 == 0 else 1
        spread = x.float().view(group, b // group, *x.shape[1:]).var(dim=0, unbiased=False).add(1e-8).sqrt()
        spread = spread.mean(dim=(1, 2, 3)).repeat(group)  # one value an image
        x = torch.cat([x, spread.to(x.dtype)[:, None, None, None].expand(-1, 1, h, w)], dim=1)
        x = F.leaky_relu(self.flat(F.leaky_relu(self.last(x), 0.2).flatten(1)), 0.2)
        projection = (x * self.embed(condition)).sum(dim=1) / math.sqrt(x.shape[1])
        return self.score(x).squeeze(1) + projection


class LatentCritic(nn.Module):
    """Tells latents of the mapping network from those of the encoder, so that both are one space (Tov et al. 2021)."""

    def __init__(self, w_dim: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(w_dim, 256), nn.LeakyReLU(0.2), nn.Linear(256, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1)
        )

    def forward(self, w: Tensor) -> Tensor:
        """Args: w (B, w_dim). Returns: logits (B,)."""
        return self.net(w).squeeze(-1)
