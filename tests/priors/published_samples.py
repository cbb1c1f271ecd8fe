"""Tiny generators of every published family, and where the reference arrays lie if they are at hand."""
import os
from pathlib import Path

import torch
from portrait_diffusion.priors.published.generator import PublishedGenerator, published_shapes
from portrait_diffusion.priors.published.sizes import RenderOptions, Sizes, render_options

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = Path(os.environ.get("PORTRAIT_GAN_GOLDENS", ROOT.parent / "shared" / "data" / "gan_goldens"))
SHAPE_LISTS = Path(os.environ.get("PORTRAIT_GAN_SHAPES", ROOT.parent / "shared" / "design" / "gan_shapes"))


def tiny_sizes(family: str) -> Sizes:
    """A few thousand weights in the published layout: planes 16², raw images 8², final images 32²."""
    common = {
        "family": family, "z_dim": 6, "w_dim": 8, "backbone": {4: 8, 8: 8, 16: 4}, "sr_channels": (8, 6, 4),
        "sr_resolution": 16,
    }  # fmt: skip
    rich = {"background": {4: 6, 8: 6}, "background_channels": 8, "features": 8}
    if family == "eg3d":
        return Sizes(**common, plane_channels=24, decoder=(8, 8, 9))
    if family == "panohead":
        return Sizes(**common, **rich, plane_channels=72, decoder=(8, 8, 9), camera_shift=True)
    if family == "spherehead":
        return Sizes(
            **common, **rich, plane_channels=20, decoder=(8, 8, 9), camera_shift=True, sphere_channels=(20, 10, 24)
        )
    return Sizes(
        **(common | {"backbone": {4: 36, 8: 36}}), **rich, plane_channels=36, c_dim=31, decoder=(4, 8, 9),
        pose_branch=True,
    )  # fmt: skip


def random_state(sizes: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors under the published names: affine biases 1, filters as published, the decoder nearly opaque.

    The pyramid's levels feed one another: its colour heads are scaled so that they stay about 1, and its density starts
    as a haze that a fit can raise and lower. Unscaled, seven levels make it zero everywhere or opaque, as it happens.
    """
    with torch.device("meta"):
        shapes = published_shapes(PublishedGenerator(sizes, RenderOptions()))
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=rng)
        if key.endswith("resample_filter"):
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
            value = torch.outer(taps, taps) / 64
        elif key.endswith("affine.bias"):
            value = 1 + 0.1 * value
        elif key.endswith("bias") or key.endswith("noise_strength"):
            value = 0.1 * value
        elif ".fc" in key and "mapping" in key and "t_mapping" not in key:
            value = value * 100  # equalised for a learning rate of 0.01
        state[key] = value
    state["decoder.net.2.weight"][0] *= 8
    if sizes.family == "pyramid":
        for key in state:
            if ".b3d" in key and key.endswith("torgb.weight"):
                state[key] *= 0.3
        density = state["decoder.net.2.weight"][0]
        density -= density.mean()  # else softplus(0) of all hidden units, times the row's sum, decides
        state["decoder.net.2.bias"][0] = 4.0
    if sizes.camera_shift:  # a shift of the camera by a few hundredths
        state["t_mapping.fc1.weight"] *= 0.01
        state["t_mapping.fc1.bias"] *= 0.1
    return state


def tiny_arguments(family: str) -> dict:
    """rendering_kwargs of a tiny checkpoint."""
    arguments = {
        "depth_resolution": 6, "depth_resolution_importance": 6, "ray_start": 2.25, "ray_end": 3.3, "box_warp": 1,
        "c_scale": 1, "superresolution_noise_mode": "none",
    }  # fmt: skip
    if family != "eg3d":
        arguments |= {"decoder_activation": "none", "use_torgb_raw": True, "use_background": True}
    if family == "pyramid":
        arguments |= {"box_warp": 0.7, "ray_start": 2.35, "ray_end": 3.12}
    return arguments


def tiny_generator(family: str, seed: int = 0) -> PublishedGenerator:
    """A random generator of a family."""
    sizes = tiny_sizes(family)
    return PublishedGenerator.load(random_state(sizes, seed), sizes, render_options(family, tiny_arguments(family), 8))
