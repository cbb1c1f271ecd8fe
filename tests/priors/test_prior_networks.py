"""Networks of the prior: modulation, upsampling, injection, truncation, conditions."""
import math

import pytest
import torch
import torch.nn.functional as F
from portrait_diffusion.priors.networks import (
    Attention,
    Discriminator,
    Encoder,
    Generator,
    LatentCritic,
    Linear,
    MappingNetwork,
    ModulatedConv,
    PlaneDecoder,
    PriorSpec,
    upsample2,
)

from .samples import tiny_spec

F64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kernel, demodulate", [(3, True), (1, False)])
def test_modulated_conv_is_a_convolution_with_each_samples_own_weights(kernel, demodulate):
    torch.manual_seed(0)
    conv = ModulatedConv(5, 4, 6, kernel, demodulate).to(F64)
    torch.nn.init.normal_(conv.bias)
    x, w = normal(3, 5, 7, 6, dtype=F64), normal(3, 6, seed=1, dtype=F64)
    expected = []
    for i in range(3):
        style = conv.affine.weight @ w[i] / math.sqrt(6) + conv.affine.bias
        weight = conv.weight / math.sqrt(5 * kernel**2) * style[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected.append(F.conv2d(x[i : i + 1], weight, conv.bias, padding=kernel // 2))
    torch.testing.assert_close(conv(x, w), torch.cat(expected), rtol=1e-12, atol=1e-12)


def test_demodulated_output_does_not_depend_on_the_styles_scale():
    torch.manual_seed(0)
    conv = ModulatedConv(8, 4, 3).to(F64)
    x, w = normal(1, 8, 6, 6, dtype=F64), normal(1, 3, seed=1, dtype=F64)
    before = conv(x, w)
    with torch.no_grad():
        conv.affine.weight *= 7
        conv.affine.bias *= 7
    torch.testing.assert_close(conv(x, w), before, rtol=1e-7, atol=1e-9)


def test_demodulation_keeps_unit_variance():
    """White noise in gives variance 1 for each output channel; 16 x 64 x 64 values, 6 sigma is 3 %."""
    torch.manual_seed(0)
    conv = ModulatedConv(16, 16, 4)
    y = conv(normal(1, 16, 66, 66, seed=2), normal(1, 4, seed=3))[..., 1:-1, 1:-1].detach()
    assert abs(float(y.square().mean()) - 1) < 0.05


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 1, 5), (1, 2, 7, 3)])
def test_upsample2_is_bilinear_interpolation(shape):
    x = normal(*shape, dtype=F64)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample2(x), expected, rtol=1e-13, atol=1e-13)


def test_linear_multiplies_weights_and_bias_by_its_gains():
    torch.manual_seed(0)
    layer = Linear(4, 3, bias_init=2.0, lr_multiplier=0.1).to(F64)
    x = normal(5, 4, dtype=F64)
    torch.testing.assert_close(layer(x), x @ layer.weight.t() * 0.1 / 2 + 2.0)


def test_mapping_sees_only_the_direction_of_z_and_tracks_its_mean():
    torch.manual_seed(0)
    mapping = MappingNetwork(tiny_spec())
    z = normal(4, 8)
    torch.testing.assert_close(mapping(z), mapping(5 * z), rtol=1e-4, atol=1e-5)
    target = normal(1, 12, seed=1)
    for _ in range(3):
        mapping.track(target, decay=0.5)
    torch.testing.assert_close(mapping.w_mean, target[0] * (1 - 0.5**3))


def test_broadcast_and_the_limits_of_truncation():
    torch.manual_seed(0)
    generator = Generator(tiny_spec())
    generator.mapping.w_mean.copy_(normal(12))
    w = normal(2, 12, seed=1)
    ws = generator.broadcast(w)
    assert ws.shape == (2, generator.spec.num_ws, 12)
    torch.testing.assert_close(ws, w[:, None].expand_as(ws))
    torch.testing.assert_close(generator.broadcast(w, 0.0), generator.mapping.w_mean.expand_as(ws))
    half = generator.broadcast(w, 0.5)
    torch.testing.assert_close(half, (0.5 * (w + generator.mapping.w_mean))[:, None].expand_as(ws))


def test_every_style_vector_and_every_feature_map_matters():
    torch.manual_seed(0)
    spec = tiny_spec()
    synthesis = Generator(spec).synthesis
    ws = normal(1, spec.num_ws, spec.w_dim, seed=1).requires_grad_(True)
    features = {r: normal(1, c, r, r, seed=r).requires_grad_(True) for r, c in spec.feature_channels.items()}
    planes, grid = synthesis(ws, features)
    assert planes.shape == (1, 3, 8, 32, 32) and grid.shape == (1, 1, 8, 2, 32, 32)
    (planes.square().sum() + grid.square().sum()).backward()
    assert (ws.grad.abs().sum(dim=-1) > 0).all()
    assert all(f.grad.abs().sum() > 0 for f in features.values())


def test_frontal_features_reach_the_foremost_layer_and_nothing_else():
    torch.manual_seed(0)
    spec = tiny_spec()
    synthesis = Generator(spec).synthesis
    ws = normal(1, spec.num_ws, spec.w_dim, seed=1)
    planes, grid = synthesis(ws)
    texture = normal(1, 8, 32, 32, seed=2)
    other_planes, other_grid = synthesis(ws, {32: texture})
    assert torch.equal(planes, other_planes) and torch.equal(grid[:, :, :, 0], other_grid[:, :, :, 0])
    torch.testing.assert_close(other_grid[:, 0, :, 1] - grid[:, 0, :, 1], texture, rtol=1e-4, atol=1e-5)
    coarse = synthesis(ws, {8: normal(1, 8, 8, 8, seed=3)})
    assert torch.equal(coarse[0], planes) and not torch.equal(coarse[1][:, :, :, 1], grid[:, :, :, 1])


def test_num_ws_counts_the_convolutions_and_the_last_output():
    spec = PriorSpec()
    generator = Generator(spec)
    assert spec.resolutions == [4, 8, 16, 32, 64, 128]
    assert spec.num_ws == len(generator.synthesis.conv0) + len(generator.synthesis.conv1) + 1 == 12


def test_absent_features_add_nothing():
    torch.manual_seed(0)
    spec = tiny_spec()
    generator = Generator(spec)
    ws = normal(2, spec.num_ws, spec.w_dim)
    zeros = {r: torch.zeros(2, c, r, r) for r, c in spec.feature_channels.items()}
    plain = generator.synthesis(ws)
    for features in (zeros, {}):
        assert all(torch.equal(a, b) for a, b in zip(plain, generator.synthesis(ws, features), strict=True))


def test_a_fresh_encoder_speaks_through_w_alone():
    torch.manual_seed(0)
    spec = tiny_spec()
    encoder, generator = Encoder(spec).eval(), Generator(spec)
    ws, delta, features = encoder(torch.rand(2, 7, 256, 256, generator=torch.Generator().manual_seed(1)))
    assert ws.shape == (2, spec.num_ws, spec.w_dim) and set(features) == {8, 16, 32}
    assert float(delta.detach().abs().max()) == 0 and torch.equal(ws, ws[:, :1].expand_as(ws))
    assert all(f.shape == (2, spec.feature_channels[r], r, r) for r, f in features.items())
    pairs = zip(generator.synthesis(ws, features), generator.synthesis(ws, {}), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.allclose(ws[0], ws[1]), "two pictures must have two codes"


def test_fresh_attention_is_the_identity():
    torch.manual_seed(0)
    x = normal(2, 8, 16, 16)
    assert torch.equal(Attention(8, 16)(x), x)


def test_decoder_weights_hold_all_gains():
    torch.manual_seed(0)
    decoder = Generator(tiny_spec()).decoder.to(F64)
    torch.nn.init.normal_(decoder.hidden.bias)
    torch.nn.init.normal_(decoder.out.bias)
    w1, b1, w2, b2 = decoder.weights()
    x = normal(5, 8, dtype=F64)
    raw = decoder.out(F.softplus(decoder.hidden(x)))
    expected = raw @ decoder.out_mix.t()
    torch.testing.assert_close(F.softplus(x @ w1.t() + b1) @ w2.t() + b2, expected)


def test_decoder_outputs_are_density_brightness_and_weaker_colour_differences():
    mix = PlaneDecoder(8, 8).out_mix
    assert mix[0, 0] == PlaneDecoder.DENSITY_GAIN and (mix[0, 1:] == 0).all() and (mix[1:, 0] == 0).all()
    gram = mix[1:, 1:].t() @ mix[1:, 1:]
    torch.testing.assert_close(gram, 3 * torch.diag(torch.tensor([1.0, 0.09, 0.09])))
    assert (mix[1:, 1] == 1).all(), "equal steps of all three colours"


def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(base=8, limit=16)


def test_the_discriminator_uses_image_and_condition():
    net = discriminator()
    image, condition = torch.rand(4, 4, 64, 64, generator=torch.Generator().manual_seed(0)), normal(4, 6)
    logits = net(image, condition)
    assert logits.shape == (4,) and logits.isfinite().all()
    image, condition = image.requires_grad_(True), condition.requires_grad_(True)
    gradients = torch.autograd.grad(net(image, condition).sum(), (image, condition))
    assert (gradients[0].abs().sum(dim=(1, 2, 3)) > 0).all()
    assert (gradients[1].abs() > 0).all(), "a part of the condition is not used"


def test_the_score_is_affine_in_the_embedded_condition():
    """Projection discriminator: logit = s(x) + <f(x), e(c)>, so a mean of embeddings gives the mean of their logits."""
    net = discriminator()
    image = torch.rand(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    conditions = normal(2, 6)
    embedded = net.embed(conditions)
    each = [net(image, c[None]) for c in conditions]
    net.embed = torch.nn.Module()
    net.embed.forward = lambda c: embedded.mean(dim=0, keepdim=True)
    torch.testing.assert_close(net(image, conditions[:1]), (each[0] + each[1]) / 2)


def test_minibatch_deviation_tells_equal_pictures_from_different_ones():
    """A picture among copies of itself scores as alone, among others not."""
    net = discriminator().to(F64)
    g = torch.Generator().manual_seed(0)
    image, others = (torch.rand(n, 4, 64, 64, generator=g, dtype=F64) for n in (1, 3))
    condition = normal(4, 6, dtype=F64)[:1].expand(4, -1)
    equal, mixed = net(image.expand(4, -1, -1, -1), condition), net(torch.cat([image, others]), condition)
    alone = net(image, condition[:1])
    torch.testing.assert_close(equal, alone.expand(4), rtol=0, atol=1e-9)
    assert float((equal[0] - mixed[0]).detach().abs()) > 1e-7


def test_latent_critic_gives_one_number_a_latent():
    torch.manual_seed(0)
    w = normal(5, 12).requires_grad_(True)
    logits = LatentCritic(12)(w)
    assert logits.shape == (5,)
    logits[0].backward()
    assert (w.grad[0] != 0).any() and (w.grad[1:] == 0).all()
