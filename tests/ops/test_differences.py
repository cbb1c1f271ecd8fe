"""Finite differences."""
import torch
from portrait_diffusion.ops.differences import central_differences


def test_a_quadratic_field_is_exact():
    """Central differences have no error in second order: f = x A x + b x has gradient (A + A^T) x + b."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 3, generator=g, dtype=torch.float64), torch.randn(3, generator=g, dtype=torch.float64)
    points = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)

    def field(x):
        return ((x @ a) * x).sum(-1) + x @ b

    found = central_differences(field, points, 0.1)
    torch.testing.assert_close(found, points @ (a + a.T) + b, rtol=1e-10, atol=1e-10)


def test_the_error_falls_with_the_square_of_the_step():
    points = torch.rand(50, 3, dtype=torch.float64)
    errors = [(central_differences(lambda x: x.sin().prod(-1), points, step) - torch.stack([
        points.cos()[:, k] * points.sin().prod(-1) / points.sin()[:, k] for k in range(3)
    ], dim=-1)).abs().max() for step in (0.1, 0.05)]  # fmt: skip
    assert 3.8 < float(errors[0] / errors[1]) < 4.2
