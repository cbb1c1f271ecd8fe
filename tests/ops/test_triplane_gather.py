"""The gathering implementation of plane sampling against the reference: values and all gradients."""
import pytest
import torch
from portrait_diffusion.ops import triplane as tp
from portrait_diffusion.ops import triplane_gather as tg

F64 = torch.float64


def pyramid(*shapes: tuple, batch: int = 2, dtype=F64) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *shape, generator=g, dtype=dtype) for shape in shapes]


def points(count: int, batch: int = 2, dtype=F64) -> torch.Tensor:
    """A quarter of them outside the box; corners, texel centres and far points among them."""
    coords = torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2.5 - 1.25
    coords[:, 0] = torch.tensor([-1.0, 1.0, 0.0])
    coords[:, 1] = torch.tensor([1 / 8 - 1, 1 - 1 / 8, 1 / 8])
    coords[:, 2], coords[:, 3] = 40.0, -1 - 1 / 8
    return coords


LEVELS = {
    "planes": [(3, 4, 8, 8)], "not square": [(3, 4, 6, 10)], "grid": [(3, 4, 5, 8, 8)],
    "one layer": [(3, 4, 1, 8, 8)], "frontal plane": [(1, 4, 8, 8)],
    "pyramid": [(3, 4, 8, 8), (3, 4, 2, 4, 4), (1, 4, 2, 16, 16)], "one row": [(3, 4, 1, 8), (1, 4, 3, 2, 1)],
}  # fmt: skip


@pytest.mark.parametrize("axes", [tp.PLANE_AXES, tp.EG3D_AXES, tp.PANOHEAD_AXES], ids=["ours", "eg3d", "panohead"])
@pytest.mark.parametrize("shapes", LEVELS.values(), ids=LEVELS.keys())
def test_values_and_gradients_are_those_of_the_reference(shapes, axes):
    levels, coords = pyramid(*shapes), points(60)
    weights = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    results = []
    for implementation in ("torch", "gather"):
        leaves = [level.clone().requires_grad_(True) for level in [*levels, coords]]
        value = tp.sample_planes(leaves[:-1], leaves[-1], axes=axes, implementation=implementation)
        (value * weights).sum().backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        assert float(got.abs().max()) > 0.1


@pytest.mark.parametrize("reduce, level_reduce", [("sum", "mean"), ("mean", "sum"), ("sum", "sum")])
def test_reductions(reduce, level_reduce):
    levels, coords = pyramid((3, 4, 8, 8), (3, 4, 4, 4)), points(20)
    a, b = (tp.sample_planes(levels, coords, reduce, level_reduce, implementation=i) for i in ("torch", "gather"))
    torch.testing.assert_close(a, b)


def test_gradcheck():
    levels = [level.requires_grad_(True) for level in pyramid((3, 2, 3, 3), (1, 2, 2, 4, 4), batch=1)]
    coords = (points(9, batch=1)[:, 4:] * 0.8).requires_grad_(True)

    def sample(*inputs):
        return tp.sample_planes(list(inputs[:-1]), inputs[-1], implementation="gather")

    assert torch.autograd.gradcheck(sample, (*levels, coords))


def test_auto_takes_it_for_many_points_and_rounds_alike():
    levels = pyramid((3, 16, 8, 8), (1, 16, 2, 8, 8), batch=1, dtype=torch.float32)
    coords = points(5000, 1, torch.float32)
    assert tp._gather_pays(levels, coords) and not tp._gather_pays(levels, coords[:, :100])
    assert not tp._gather_pays([level[:, :, :4] for level in levels], coords)
    auto, reference = (tp.sample_planes(levels, coords, implementation=i) for i in ("auto", "torch"))
    torch.testing.assert_close(auto, reference, rtol=1e-5, atol=2e-6)
    assert torch.equal(auto, tp.sample_planes(levels, coords, implementation="gather"))


def test_unknown_implementations_are_named():
    with pytest.raises(ValueError, match="implementation must be one of auto, torch, gather, triton, got 'magic'"):
        tp.sample_planes(pyramid((3, 4, 8, 8)), points(5), implementation="magic")


def test_rows_of_points_serve_any_levels_of_their_shapes():
    first, second = (pyramid((3, 4, 8, 8), (1, 4, 2, 4, 6), dtype=torch.float32) for _ in range(2))
    second = [level + 1 for level in second]
    coords = points(50, dtype=torch.float32)
    rows = tg.plane_rows([level.shape for level in first], coords, tp.PLANE_AXES)
    for levels in (first, second):
        found = tg.weighted_rows(rows, tg.plane_table(levels)).view(2, 50, 4)
        torch.testing.assert_close(found, tp.sample_planes(levels, coords, "sum", implementation="torch"))


@pytest.fixture
def built(monkeypatch) -> list:
    """Levels of which tables have been built."""
    calls, build = [], tg._built
    monkeypatch.setattr(tg, "_built", lambda levels: calls.append(levels) or build(levels))
    return calls


def test_tables_are_built_once_while_they_are_kept_and_anew_after(built):
    levels = pyramid((3, 4, 8, 8))
    with tg.kept_tables():
        table = tg.plane_table(levels)
        with tg.kept_tables():
            assert tg.plane_table(list(levels)) is table and tg.table_is_kept(levels)
        assert tg.plane_table(levels) is table and len(built) == 1
    levels[0].mul_(2)
    assert not tg.table_is_kept(levels) and torch.equal(tg.plane_table(levels), 2 * table)
    with pytest.raises(KeyError), tg.kept_tables():
        raise KeyError
    assert not tg.table_is_kept(levels), "also after an error"
    with tg.kept_tables():
        assert torch.equal(tg.plane_table(levels), 2 * table), "not what was kept before"


def test_levels_that_take_gradients_are_read_anew(built):
    (level,) = pyramid((3, 4, 8, 8))
    level.requires_grad_(True)
    with tg.kept_tables():
        for _ in range(2):
            tg.plane_table([level]).sum().backward()
            assert torch.equal(level.grad, torch.ones_like(level))
            level.grad = None
        with torch.no_grad():
            assert tg.plane_table([level]) is tg.plane_table([level])
    assert len(built) == 3


def test_one_pass_may_share_a_table_that_takes_gradients(built):
    """Two look-ups of one table give the levels the gradients of two tables; a body without gradients has its own."""
    levels = [level.requires_grad_(True) for level in pyramid((3, 4, 8, 8), (1, 4, 2, 6, 6))]
    first, second = points(40, 2, torch.float64), points(30, 2, torch.float64)

    def total() -> torch.Tensor:
        looks = (tp.sample_planes(levels, c, "sum", implementation="gather") for c in (first, second))
        return sum(look.pow(2).sum() for look in looks)

    apart = torch.autograd.grad(total(), levels)
    assert len(built) == 2
    with tg.kept_tables(gradients=True):
        assert not tg.table_is_kept(levels), "its backward pass is not free"
        shared = torch.autograd.grad(total(), levels)
        assert len(built) == 3
        with tg.kept_tables(), torch.no_grad():
            tg.plane_table(levels)
            assert tg.table_is_kept(levels) and len(built) == 4, "not the one with a graph"
    torch.testing.assert_close(shared, apart)
    with tg.kept_tables():
        for found in (torch.autograd.grad(total(), levels) for _ in range(2)):
            torch.testing.assert_close(found, apart)
        with tg.kept_tables(gradients=True):
            torch.testing.assert_close(torch.autograd.grad(total(), levels), apart)
    assert len(built) == 9


def test_kept_tables_do_not_fill_the_memory(built):
    with tg.kept_tables():
        for k in range(3 * tg.MOST):
            tg.plane_table([torch.full((1, 3, 4, 8, 8), float(k))])
            assert len(tg._tables.get().built) <= tg.MOST
    assert len(built) == 3 * tg.MOST


def test_auto_takes_kept_tables_for_few_points_and_channels():
    grid = pyramid((1, 4, 6, 8, 8), batch=1, dtype=torch.float32)
    coords = points(1024, 1, torch.float32)
    assert not tp._gather_pays(grid, coords)
    reference = tp.sample_planes(grid, coords, "sum", implementation="torch")
    with tg.kept_tables():
        assert tp._gather_pays(grid, coords) and not tp._gather_pays(grid, coords[:, :1023])
        torch.testing.assert_close(tp.sample_planes(grid, coords, "sum"), reference, rtol=1e-5, atol=2e-6)
