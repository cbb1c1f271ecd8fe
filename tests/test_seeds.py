"""Seeds of steps."""
import torch
from portrait_diffusion.seeds import seeded, step_seed


def test_no_two_steps_share_a_seed():
    seen = {step_seed(seed, step, rank) for seed in (0, 1, 7) for step in range(2000) for rank in range(4)}
    assert len(seen) == 3 * 2000 * 4 and all(0 <= s < 2**63 for s in seen)
    assert 0 <= step_seed(2**40, 2**40, 1023) < 2**63


def test_global_generators_start_from_the_seed_and_stay_as_they_were():
    torch.manual_seed(1)
    torch.rand(3)
    before = torch.get_rng_state()
    with seeded(5, "cpu"):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    with seeded(5, torch.device("cpu")):
        assert torch.equal(torch.rand(4), first)
    with seeded(6, "cpu"):
        assert not torch.equal(torch.rand(4), first)
