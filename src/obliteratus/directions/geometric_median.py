"""Difference of the geometric medians of both classes (Weiszfeld)."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.difference_of_means import with_axes
from obliteratus.directions.samples import EXTRACTORS, Samples, signed_by_delta, unit
from obliteratus.errors import DirectionError

TOLERANCE = 1e-10
"""Length of the mean unit vector towards the prompts, the gradient of the mean distance, at which
the estimate is the median: it is then wrong by about as many distances of the prompts."""
MOST_STEPS = 10_000


@EXTRACTORS.register("geometric_median")
def geometric_median_difference(
    samples: Samples, *, max_rank: int = 1
) -> Float64[Tensor, "rank d_model"]:
    """Return m_harmful − m_harmless, normalised, then the main axes of the pair differences.

    m = argmin_y Σ ‖x_i − y‖ over the prompts of a class. Outlying prompts, up to half of a class,
    move it by a bounded amount, where one of them can carry a mean anywhere. Without outliers it is
    the difference in means up to sampling noise. The sign is fixed by δ; rows 1… are as in
    :func:`obliteratus.directions.difference_of_means.difference_of_means`, around this row.

    Raises:
        DirectionError: the medians do not differ, are not finite, or were not found.
    """
    first = unit(geometric_median(samples.harmful) - geometric_median(samples.harmless))
    return with_axes(signed_by_delta(first, samples.delta), samples, max_rank)


def geometric_median(rows: Float[Tensor, "prompt d_model"]) -> Float64[Tensor, " d_model"]:
    """Return argmin_y Σ ‖x_i − y‖, to a mean unit vector of length ``TOLERANCE``.

    Weiszfeld's y ← Σ w_i x_i / Σ w_i with w_i = 1 / ‖x_i − y‖ starts at the mean. A row that is the
    minimum itself (the unit vectors towards the others sum to no more than the number of rows at
    that point; Kuhn 1973) is returned as it is, because the iteration creeps there; another one
    that the iteration steps on does not count in that step.

    Raises:
        DirectionError: a row is not finite, or the iteration does not converge.
    """
    exact = rows.to("cpu", torch.float64)
    if not bool(exact.isfinite().all()):
        raise DirectionError(
            "activations are not finite, so they have no median; load the model in bfloat16 or "
            "float32 and probe it again."
        )
    estimate, nearest, left = exact.mean(0), -1, 0.0
    for _ in range(MOST_STEPS):
        away = exact - estimate
        distances = away.norm(dim=1)
        if int(distances.argmin()) != nearest:
            nearest = int(distances.argmin())
            if _is_median(exact, exact[nearest]):
                return exact[nearest]
        pull, weight, _ = _pull(away, distances)
        left = float(pull.norm()) / len(exact)
        if left <= TOLERANCE:
            return estimate
        estimate = estimate + pull / weight
    raise DirectionError(
        f"the geometric median did not converge in {MOST_STEPS} steps: the mean unit vector is "
        f"{left:.1e} long (at most {TOLERANCE:g}). Use distill.extractor=winsorised_coordinates."
    )


def _pull(
    away: Float64[Tensor, "prompt d_model"], distances: Float64[Tensor, " prompt"]
) -> tuple[Float64[Tensor, " d_model"], float, int]:
    """Return the sum of the unit vectors, Σ w, and how many rows are at the point itself."""
    is_here = distances == 0
    weights = torch.where(is_here, 0.0, 1 / torch.where(is_here, 1.0, distances))
    return weights @ away, float(weights.sum()), int(is_here.sum())


def _is_median(rows: Float64[Tensor, "prompt d_model"], point: Float64[Tensor, " d_model"]) -> bool:
    away = rows - point
    pull, _, here = _pull(away, away.norm(dim=1))
    return float(pull.norm()) <= here
