"""Comparisons of a run in numbers."""
import math

import pytest
from portrait_diffusion.noise.summary import noise_summary


def test_a_run_by_hand():
    curves = {
        "refine/guidance_loss_sds": [3.0, 2.0], "latent/rgb": [1.0],
        "refine/guidance_noise_rows": [4.0, 4.0, 0.0], "refine/guidance_noise_compared": [4.0, 4.0, 0.0],
        "refine/guidance_noise_accepted": [0.5, 0.25], "refine/guidance_noise_score": [0.25, math.nan],
        "refine/guidance_noise_score_kept": [0.5, 0.75], "refine/guidance_noise_control": [math.nan, math.nan],
        "restore/guidance_extra0_noise_rows": [8.0],
    }
    assert noise_summary(curves) == {
        "refine/guidance": {
            "comparisons": 2, "extra_denoiser_rows": 8, "accepted": 0.375, "score": 0.25, "score_kept": 0.625,
        },
        "restore/guidance_extra0": {"comparisons": 1, "extra_denoiser_rows": 8},
    }  # fmt: skip


@pytest.mark.parametrize("curves", [{}, {"latent/rgb": [1.0]}, {"refine/guidance_loss_sds": [1.0]}])
def test_without_comparisons_there_is_nothing(curves):
    assert noise_summary(curves) == {}
