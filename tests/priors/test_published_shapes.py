"""Names and shapes of the published state dicts, at full size, for all four families."""
import hashlib
import re

import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.priors.published.generator import PublishedGenerator, published_shapes
from portrait_diffusion.priors.published.sizes import (
    FAMILIES,
    RenderOptions,
    family_of,
    released,
    render_options,
    sizes_of,
)

from priors.published_samples import SHAPE_LISTS, random_state, tiny_arguments, tiny_generator, tiny_sizes

# lines "P name 1x2x3" (parameter) or "B name ..." (buffer) of the published state dicts, sorted, without 'renderer.'
PUBLISHED = {
    "eg3d": (176, 30_662_136, "f5c6cd8c517c54fd62c3bc20b4064655a7e17e7b15d6513dfcfe503ecd64af40"),
    "panohead": (295, 53_741_548, "bad4084284beb90eb3f66a877ebc64b081639fcc6b89561588fc7611ed878282"),
    "spherehead": (303, 54_713_868, "6427bd71650de9b44546e374c6f6388860fa54f876c9b481870d583839c1b7ca"),
    "pyramid": (427, 36_420_530, "648552189260c4d9cfc6f0ea9aae9c2f3ed9fcd7eec1fd4f53176575d634e9f1"),
}


def released_on_meta(family: str) -> PublishedGenerator:
    with torch.device("meta"):
        return PublishedGenerator(released(family), RenderOptions())


def lines(generator: PublishedGenerator) -> list[str]:
    parameters = dict(generator.named_parameters())
    shapes = published_shapes(generator)
    return sorted(
        f"{'P' if key in parameters else 'B'} {key} {'x'.join(map(str, shape))}" for key, shape in shapes.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_names_kinds_and_shapes_are_the_published_ones(family):
    generator = released_on_meta(family)
    count, parameters, digest = PUBLISHED[family]
    listed = lines(generator)
    assert len(listed) == count
    assert sum(p.numel() for p in generator.parameters()) == parameters
    assert hashlib.sha256("\n".join(listed).encode()).hexdigest() == digest


@pytest.mark.parametrize("family", FAMILIES)
def test_against_the_lists_themselves(family):
    path = SHAPE_LISTS / f"{family}.txt"
    if not path.is_file():
        pytest.skip(f"the lists of published names are not at {SHAPE_LISTS} (set PORTRAIT_GAN_SHAPES)")
    wanted = []
    for line in path.read_text().splitlines():
        kind, key, shape = re.match(r"([PB]) (\S+) \((.*?)\)", line).groups()
        if not key.startswith("renderer."):
            wanted.append(f"{kind} {key} {'x'.join(n.strip() for n in shape.split(',') if n.strip())}")
    assert lines(released_on_meta(family)) == sorted(wanted)


def test_the_numbers_of_latent_rows():
    rows = {family: released_on_meta(family).num_ws for family in FAMILIES}
    assert rows == dict.fromkeys(FAMILIES, 14)
    assert released_on_meta("panohead").bcg_synthesis.num_ws == 12


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_read_back_from_shapes(family):
    for sizes in (released(family), tiny_sizes(family)):
        with torch.device("meta"):
            shapes = published_shapes(PublishedGenerator(sizes, RenderOptions()))
        assert family_of(shapes) == family
        assert sizes_of(shapes) == sizes


@pytest.mark.parametrize("change", ["lost", "extra", "shape"])
def test_loading_is_strict(change):
    sizes = tiny_sizes("panohead")
    state = random_state(sizes)
    if change == "lost":
        del state["t_mapping.fc1.bias"]
    elif change == "extra":
        state["torgb.other"] = torch.zeros(1)
    else:
        state["torgb.bias"] = torch.zeros(4)
    with pytest.raises(UsageError, match=r"t_mapping\.fc1\.bias|torgb"):
        PublishedGenerator.load(state, sizes, render_options("panohead", tiny_arguments("panohead"), 8))


def test_other_networks_are_refused_in_a_sentence():
    with pytest.raises(UsageError, match="no generator of the EG3D family"):
        sizes_of({"synthesis.b4.const": (512, 4, 4)})
    with torch.device("meta"):
        shapes = published_shapes(PublishedGenerator(tiny_sizes("eg3d"), RenderOptions()))
    with pytest.raises(UsageError, match="8XDC"):
        sizes_of({k: v for k, v in shapes.items() if not k.startswith("superresolution")})
    with pytest.raises(UsageError, match="expected 2 axes"):
        sizes_of(shapes | {"decoder.net.0.weight": (10**9, 8)})


@pytest.mark.parametrize("name,value", [("ray_start", "auto"), ("box_warp", -1), ("depth_resolution", True)])
def test_unusable_arguments_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        render_options("eg3d", {name: value}, 8)
    with pytest.raises(UsageError, match="neural_rendering_resolution"):
        render_options("eg3d", {}, 10**6)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_latent_rows(family):
    generator = tiny_generator(family)
    ws = torch.randn(1, generator.num_ws, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sum(level.square().mean() for level in generator.planes(ws)).backward()
    assert torch.isfinite(ws.grad).all()
    assert (ws.grad.abs().amax(dim=-1) > 0).all()  # every row drives some layer
