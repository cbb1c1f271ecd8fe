"""Training renders as CUDA graphs: on a CPU all but the graphs themselves, with the function run at every replay."""
import pytest
import torch
from portrait_diffusion.errors import UsageError
from portrait_diffusion.geometry.triplane import TriplaneGeometry
from portrait_diffusion.ops import cameras as cam
from portrait_diffusion.renderer import volume
from portrait_diffusion.renderer.graphs import GraphedFunction
from portrait_diffusion.renderer.plain import PlainColour
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)"),
        ],
    ),
]
WAYS = {
    "even": {"num_samples_per_ray": 12, "num_importance_samples": 0},
    "two passes": {"num_samples_per_ray": 8, "num_importance_samples": 8},
    "grid": {"occupancy_resolution": 16, "num_importance_samples": 8},
}
FIELDS = {
    "own": {},
    "restored": {"restoration_resolution": 8, "restoration_replaces": True, "detail_resolution": 8},
    "published": {"plane_layout": "eg3d", "plane_centre": [0.01, 0.0, -0.02], "plane_radius": 0.4, "plane_crop": 0.3},
}


@pytest.fixture
def anywhere(monkeypatch):
    """Graphs are not refused on a CPU."""
    true = volume.graphs_refused

    def but_for_the_device(*args):
        reason = true(*args)
        return None if reason == "needs a GPU" else reason

    monkeypatch.setattr(volume, "graphs_refused", but_for_the_device)


def head(device="cpu", seed=0, **config) -> TriplaneGeometry:
    small = {"channels": 16, "resolution": 16, "hidden": 16, "init_std": 2.0, "init_density": 3.0, "seed": seed}
    return TriplaneGeometry(small | config).to(device)


def renderer(geometry, graphs=True, material=None, **config) -> volume.PortraitVolumeRenderer:
    way = {} if "num_importance_samples" in config else WAYS["grid"]
    settings = {"cuda_graphs": graphs, **way, **config}
    module = volume.PortraitVolumeRenderer(settings, geometry=geometry, material=material, background=None)
    return module.to(geometry.planes[0].device).train()


def views(device="cpu", count=2, size=6, azimuth=0.0):
    """All of whose rays hit the cylinder, so that plain and graphed renders draw alike."""
    c2w = cam.orbit_c2w(torch.linspace(0, 200, count) + azimuth, 10.0)
    return [x.to(device) for x in cam.get_rays(c2w, 0.5 * cam.canonical_fovy(c2w), size, size)]


def step(module, rays, seed=None, **more) -> tuple[dict, list]:
    """A render and its gradients, through several of its results."""
    module.geometry.zero_grad(set_to_none=True)
    generator = None if seed is None else torch.Generator(rays[0].device).manual_seed(seed)
    out = module(*rays, generator=generator, **more)
    loss(out).backward()
    return out, [None if p.grad is None else p.grad.clone() for p in module.geometry.parameters()]


def loss(out: dict) -> torch.Tensor:
    return out["comp_rgb"].square().sum() + out["depth"].sum() + 3 * out["z_variance"].sum() + out["weights"].max()


def same(found: tuple, expected: tuple, tolerance: float) -> None:
    """Values and gradients, each by its largest."""
    assert found[0].keys() == expected[0].keys()
    pairs = [(found[0][k], expected[0][k]) for k in expected[0]] + list(zip(found[1], expected[1], strict=True))
    for a, b in pairs:
        assert (a is None) == (b is None)
        if a is not None:
            a, b = a.detach(), b.detach()
            assert a.shape == b.shape and a.dtype == b.dtype
            assert float((a.double() - b.double()).abs().max()) <= tolerance * float(b.double().abs().max() + 1e-3)


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).detach().abs().max()) > 1e-4


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("device", DEVICES)
class TestRenders:
    @pytest.mark.parametrize("field", FIELDS)
    @pytest.mark.parametrize("way", WAYS)
    def test_values_and_gradients_are_those_of_plain_renders(self, device, way, field):
        """The second call is a replay with other cameras and draws."""
        geometry = head(device, **FIELDS[field])
        graphed, plain = (renderer(geometry, graphs, **WAYS[way]) for graphs in (True, False))
        for seed, azimuth in ((1, 0.0), (2, 40.0), (2, 40.0)):
            rays = views(device, azimuth=azimuth)
            same(step(graphed, rays, seed), step(plain, rays, seed), 1e-4)
        assert len(graphed._graphed.recorded) == 1

    def test_what_changes_between_replays_is_seen(self, device):
        """Planes and decoder changed in place, as by an optimizer; cameras; the generator; the grid made anew."""
        geometry = head(device)
        module, plain = renderer(geometry), renderer(geometry, False)
        first = step(module, views(device), 1)
        assert differ(step(module, views(device), 2)[0]["comp_rgb"], first[0]["comp_rgb"])
        assert differ(step(module, views(device, azimuth=50.0), 1)[0]["comp_rgb"], first[0]["comp_rgb"])
        same(step(module, views(device), 1), first, 1e-4)
        optimizer = torch.optim.Adam(geometry.parameters(), lr=0.1)
        for _ in range(2):
            step(module, views(device), 1)
            optimizer.step()
        for one in (module, plain):
            one.update_step(0, 0)
        again = step(module, views(device), 1)
        assert differ(again[0]["comp_rgb"], first[0]["comp_rgb"]) and differ(again[1][0], first[1][0])
        same(again, step(plain, views(device), 1), 1e-4)
        assert len(module._graphed.recorded) == 1

    def test_a_seed_is_drawn_without_a_generator(self, device):
        module = renderer(head(device))
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(step(module, views(device))[0]["comp_rgb"].detach())
        assert not differ(found[0], found[1]) and differ(found[0], found[2])

    def test_gradients_add_up_over_steps(self, device):
        geometry = head(device)
        module = renderer(geometry)
        expected = [step(module, views(device, azimuth=a), 1)[1] for a in (0.0, 30.0)]
        geometry.zero_grad(set_to_none=True)
        generator = torch.Generator(device)
        for azimuth in (0.0, 30.0):
            loss(module(*views(device, azimuth=azimuth), generator=generator.manual_seed(1))).backward()
        for parameter, a, b in zip(geometry.parameters(), *expected, strict=True):
            torch.testing.assert_close(parameter.grad, a + b, rtol=1e-3, atol=1e-4 * float((a + b).abs().max()))

    def test_two_renders_before_their_gradients(self, device):
        """Also when one of them is kept, and the graphs take over again once it is gone."""
        geometry = head(device)
        module, plain = renderer(geometry), renderer(geometry, False)
        step(module, views(device), 1)
        found = []
        for one in (module, plain):
            geometry.zero_grad(set_to_none=True)
            kept = []
            for azimuth in (0.0, 30.0):
                generator = torch.Generator(device).manual_seed(1)
                kept.append(one(*views(device, azimuth=azimuth), generator=generator))
            values = {f"{i} {k}": x.detach().clone() for i, out in enumerate(kept) for k, x in out.items()}
            sum(loss(out) * (1 + i) for i, out in enumerate(kept)).backward()
            found.append((values, [p.grad.clone() for p in geometry.parameters()]))
        same(*found, 1e-4)
        (recorded,) = module._graphed.recorded.values()
        assert not recorded.waiting()
        before = kept[0]["comp_rgb"].detach().clone()
        step(module, views(device, azimuth=90.0), 2)
        assert torch.equal(before, kept[0]["comp_rgb"])  # results are nobody else's memory

    def test_gradients_can_be_taken_once(self, device):
        module = renderer(head(device))
        total = loss(module(*views(device)))
        total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="can be taken once"):
            total.backward()

    def test_other_shapes_and_parameters_are_captured_anew_up_to_a_limit(self, device):
        geometry = head(device)
        module, plain = renderer(geometry), renderer(geometry, False)
        for i, size in enumerate((4, 6, 4)):
            same(step(module, views(device, size=size), 1), step(plain, views(device, size=size), 1), 1e-4)
            assert len(module._graphed.recorded) == min(i + 1, 2)
        geometry.planes[0].requires_grad_(False)
        same(step(module, views(device), 1), step(plain, views(device), 1), 1e-4)
        assert geometry.planes[0].grad is None and len(module._graphed.recorded) == 3
        geometry.planes[0].data = geometry.planes[0].data.clone()  # it has moved
        with torch.no_grad():
            geometry.planes[0] *= 0.5
        same(step(module, views(device), 1), step(plain, views(device), 1), 1e-4)
        for size in (3, 5, 7):
            same(step(module, views(device, size=size), 1), step(plain, views(device, size=size), 1), 1e-4)
        assert len(module._graphed.recorded) == GraphedFunction.MOST

    def test_normals_follow_plainly_and_a_material_is_taken_along(self, device):
        geometry = head(device)
        modules = [renderer(geometry, graphs, PlainColour({}), return_normals=True) for graphs in (True, False)]
        for azimuth in (0.0, 30.0):
            rays = views(device, azimuth=azimuth)
            found = [step(one, rays, 1, light_positions=rays[0][:, 0, 0]) for one in modules]
            same(*found, 1e-4)
            assert float(found[0][0]["comp_normal"].detach().abs().max()) > 0.1

    def test_evaluation_and_renders_without_gradients_stay_outside(self, device):
        module = renderer(head(device))
        with torch.no_grad():
            module(*views(device))
        module.eval()(*views(device))
        module.train().look(*views(device))
        assert not module._graphed.recorded

    def test_under_autocast(self, device):
        geometry = head(device)
        modules = [renderer(geometry, graphs) for graphs in (True, False)]
        for _ in range(2):
            with torch.autocast(device, torch.bfloat16):
                found = [step(one, views(device), 1) for one in modules]
            same(*found, 0.05)
        plain = step(modules[0], views(device), 1)
        assert len(modules[0]._graphed.recorded) == 2
        same(plain, step(modules[1], views(device), 1), 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)")
@pytest.mark.parametrize("way", WAYS)
def test_the_kernels_are_replayed_as_plain_calls_compute(way):
    """Field, compositing and the grid's samples by Triton; atomic additions come in another order."""
    pytest.importorskip("triton")
    geometry = head("cuda", implementation="triton", channels=32, hidden=64, resolution=32)
    modules = [renderer(geometry, graphs, implementation="triton", **WAYS[way]) for graphs in (True, False)]
    for seed, azimuth in ((1, 0.0), (2, 40.0), (3, 80.0)):
        rays = views("cuda", azimuth=azimuth, size=32)
        same(*(step(one, rays, seed) for one in modules), 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (none is visible)")
def test_a_training_with_graphs_goes_the_way_of_a_plain_one():
    """Twenty steps of Adam towards one colour, with a shape of its own every fourth."""
    curves = []
    for graphs in (False, True):
        geometry = head("cuda")
        module = renderer(geometry, graphs)
        optimizer = torch.optim.Adam(geometry.parameters(), lr=0.01)
        values = []
        for i in range(20):
            module.update_step(0, i)
            optimizer.zero_grad(set_to_none=i % 2 == 0)
            rays = views("cuda", size=8 if i % 4 else 12, azimuth=18.0 * i)
            out = module(*rays, generator=torch.Generator("cuda").manual_seed(i))
            value = (out["comp_rgb"] - 0.2).square().mean()
            value.backward()
            optimizer.step()
            values.append(float(value))
        curves.append(values)
    assert curves[0][-1] < 0.8 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=0.02)


class Operations(TorchDispatchMode):
    """Names of all operations, forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("field", [*FIELDS, "spherehead"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_captured_leaves_the_host_alone(way, field):
    """No values are read on the host, no sizes depend on values, no tensors are made of numbers, nothing is drawn."""
    geometry = head(**FIELDS.get(field, {"plane_layout": field, "plane_centre": [0.0, 0.01, 0.0]}))
    module = renderer(geometry, **WAYS[way])
    rays_o, rays_d = (x.flatten(1, 2) for x in views())
    inputs = {"rays_o": rays_o, "rays_d": rays_d, **({"grid": module._densities()} if way == "grid" else {})}
    inputs |= {"draw 0": torch.rand(2, 36, 8 if way != "even" else 12), "draw 1": torch.rand(2, 36, 8)}
    with Operations() as operations:
        out = module._render_with(dict(geometry.named_parameters()), inputs)
        sum(out[key].sum() for key in ("rgb", "depth", "z_variance")).backward()
    assert {"aten.exp", "aten.grid_sampler_2d"} <= operations.seen
    host = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "item", "is_nonzero",
            "rand", "uniform_", "bernoulli_", "normal_")  # fmt: skip
    assert sorted(operations.seen & {f"aten.{name}" for name in host}) == []


# ---- refusals -------------------------------------------------------------------------------------------------------
def test_on_a_cpu_graphs_are_refused():
    with pytest.raises(UsageError, match="renderer.cuda_graphs needs a GPU; set it to false"):
        renderer(head())(*views())


@pytest.mark.usefixtures("anywhere")
def test_other_refusals_name_their_reason():
    geometry, rays = head(), views()
    with pytest.raises(UsageError, match="no gradients to rays"):
        renderer(geometry)(rays[0].requires_grad_(), rays[1])
    learning, shaded = PlainColour({}), PlainColour({})
    learning.tint, shaded.requires_normal = nn.Parameter(torch.ones(3)), True
    for material in (learning, shaded):
        with pytest.raises(UsageError, match="a material without normals and parameters"):
            renderer(geometry, material=material)(*views())
    handle = geometry.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(UsageError, match="hooks of the geometry"):
        renderer(geometry)(*views())
    handle.remove()
    renderer(geometry)(*views())
