"""What the comparisons of a noise sampler came to, over the stages of a run."""
import math
from collections.abc import Mapping, Sequence

MEANS = ("accepted", "score", "score_kept", "control")


def noise_summary(curves: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """The comparisons of each stage and guidance: how many, what they cost, how they ended.

    Args: curves: name -> one value a comparison, named ``STAGE/GUIDANCE_noise_QUANTITY`` (the system's curves); others
        are passed over. Where no views were neighbours, nothing was compared and no row paid.
    Returns: ``STAGE/GUIDANCE`` -> comparisons; extra_denoiser_rows, pictures that the denoiser saw for further
        candidates; and means over the comparisons that could be made: accepted, the share of views that kept a fresh
        draw; score and score_kept, cosines between the gradients of neighbouring views with the anchors' noise and with
        what was kept; control, the same with shuffled pairs. What no comparison had is left out.
    """
    found: dict[str, dict[str, float]] = {}
    for name in (name for name in curves if name.endswith("_noise_rows")):
        key = name.removesuffix("_noise_rows")
        rows = curves[name]
        found[key] = {"comparisons": sum(n > 0 for n in rows), "extra_denoiser_rows": int(sum(rows))}
        for quantity in MEANS:
            values = [v for v in curves.get(f"{key}_noise_{quantity}", ()) if math.isfinite(v)]
            if values:
                found[key][quantity] = math.fsum(values) / len(values)
    return found
