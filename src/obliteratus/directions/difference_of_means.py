"""Difference in means (arXiv:2406.11717), and further rows from the structure around it."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.paired_svd import leading_axes
from obliteratus.directions.samples import EXTRACTORS, Samples, unit_delta
from obliteratus.operator.bases import orthonormalise


@EXTRACTORS.register("difference_of_means")
def difference_of_means(samples: Samples, *, max_rank: int = 1) -> Float64[Tensor, "rank d_model"]:
    """Return δ̂ = δ / ‖δ‖, then the main axes of the pair differences around it.

    Row 0 is exactly δ̂. Rows 1… are the leading singular vectors of the pair differences after δ̂
    is projected out of each: how differently different pairs move. Whether they carry refusal is
    decided causally by the rank search, not by their singular values.

    Raises:
        DirectionError: the class means do not differ.
    """
    return with_axes(unit_delta(samples), samples, max_rank)


def with_axes(
    first: Float64[Tensor, "1 d_model"], samples: Samples, max_rank: int
) -> Float64[Tensor, "rank d_model"]:
    """Return ``first`` and the leading axes of the pair differences outside it, orthonormal."""
    if max_rank == 1:
        return first
    around = samples.differences - (samples.differences @ first.T) @ first
    rest = leading_axes(around, samples.delta, max_rank - 1)
    return orthonormalise(torch.cat([first, rest]))
