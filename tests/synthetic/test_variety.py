"""Hair of training heads that no asset has."""
import numpy as np
import pytest
from portrait_diffusion.synthetic.fur import tuft_tones
from portrait_diffusion.synthetic.sampling import SHORT, sample_subject
from portrait_diffusion.synthetic.variety import OUTWARD, PERIODS, SKULL, length_map, smooth_field, vary_shape


def shell(n=4000, seed=0):
    """Points on a sphere of a skull's size around it."""
    p = np.random.default_rng(seed).standard_normal((n, 3))
    return SKULL + 0.14 * p / np.linalg.norm(p, axis=1, keepdims=True)


def test_fields_have_unit_variance_and_the_wanted_smoothness():
    """Over 400 fields at one point; 5 sigma of the mean and of the variance of a sum of sines."""
    point = np.array([[0.1, -0.2, 0.05], [0.101, -0.2, 0.05]])
    values = np.array([smooth_field(point, np.random.default_rng(k)) for k in range(400)])
    assert abs(values[:, 0].mean()) < 5 / 20 and abs(values[:, 0].var() - 1) < 5 * np.sqrt(2 / 400)
    slope = np.abs(values[:, 1] - values[:, 0]) / 0.001
    assert slope.max() < np.sqrt(2 * 6) * 2 * np.pi / PERIODS[0], "no steeper than all waves together"


def test_shapes_change_smoothly_and_never_sink_into_the_skull():
    p = shell()
    assert vary_shape(p, 0.0, np.random.default_rng(0)) is p
    first, again, other = (vary_shape(p, 1.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and np.abs(first - other).max() > 0.01
    for seed in range(50):
        q = vary_shape(p, 1.0, np.random.default_rng(seed))
        upper = p[:, 1] > 0.06  # above what hangs
        radius = np.linalg.norm(q[upper] - SKULL, axis=1)
        assert radius.min() > 0.14 * 0.95 - 0.2 * OUTWARD - 1e-9 and np.abs(q - p).max() < 0.2
    near = vary_shape(np.concatenate([p, p + [1e-4, 0, 0]]), 1.0, np.random.default_rng(3))
    assert np.abs(near[len(p):] - near[:len(p)]).max() < 3e-4 + 1e-4


def test_half_the_amount_changes_less():
    p = shell()
    moved = [np.mean([np.abs(vary_shape(p, amount, np.random.default_rng(seed)) - p).mean() for seed in range(20)])
             for amount in (0.3, 0.6, 1.0)]  # fmt: skip
    assert 0 < moved[0] < moved[1] < moved[2]


def test_cropped_hair_is_longest_on_top_and_within_its_limits():
    p = shell()
    assert np.array_equal(length_map(p, 0.0, np.random.default_rng(0)), np.ones(len(p)))
    lengths = np.array([length_map(p, 1.0, np.random.default_rng(seed)) for seed in range(60)])
    assert lengths.min() >= 0.15 and lengths.max() <= 1.3
    top, side = p[:, 1] > 0.14, np.abs(p[:, 1]) < 0.03
    assert lengths[:, top].mean() > 1.2 * lengths[:, side].mean()


@pytest.mark.parametrize("amount", [0.1, 1.0])
def test_tufts_darken_only(amount):
    tone = tuft_tones((64, 64), amount, np.random.default_rng(0))
    assert tone.shape == (64, 64) and 0.55 <= tone.min() and tone.max() <= 1 and 0.05 * amount < tone.std() < 0.15


def test_only_training_heads_are_varied(basis, assets):
    """Held-out heads stay as they are, so that numbers compare over time."""
    for split in ("val", "test"):
        assert {sample_subject(0, split, k, basis, assets).hair_variety for k in range(20)} == {0.0}
    people = [sample_subject(0, "train", k, basis, assets) for k in range(60)]
    assert all(0.3 <= s.hair_variety <= 1 for s in people)
    cropped = [s for s in people if s.hair == "buzz" and s.buzz_length > 0.016]
    assert cropped and {s.hair for s in people} & set(SHORT) - {"buzz"}, "short hair is cropped now and then"
