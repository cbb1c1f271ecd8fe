"""Seeds of steps."""
from portrait_diffusion.seeds import step_seed


def test_no_two_steps_share_a_seed():
    seen = {step_seed(seed, step, rank) for seed in (0, 1, 7) for step in range(2000) for rank in range(4)}
    assert len(seen) == 3 * 2000 * 4 and all(0 <= s < 2**63 for s in seen)
    assert 0 <= step_seed(2**40, 2**40, 1023) < 2**63
