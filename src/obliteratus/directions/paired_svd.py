"""Singular vectors of the paired differences."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.samples import EXTRACTORS, Samples, signed_by_delta, unit_delta
from obliteratus.operator.bases import orthonormalise


@EXTRACTORS.register("paired_svd")
def paired_svd(samples: Samples, *, max_rank: int = 1) -> Float64[Tensor, "rank d_model"]:
    """Return the top right singular vectors of the uncentred pair differences D [pair, d_model].

    DᵀD / n = δδᵀ + Cov(pair difference), so the first vector is near δ̂ only where the mean shift
    beats the largest eigenvalue of the covariance; one rogue coordinate is enough to lose it. The
    sign of each row is fixed by δ. At most min(n, d_model) rows exist.

    Raises:
        DirectionError: the class means do not differ, or are not finite.
    """
    unit_delta(samples)  # or refuse
    return orthonormalise(leading_axes(samples.differences, samples.delta, max_rank))


def leading_axes(
    differences: Float64[Tensor, "pair d_model"], delta: Float64[Tensor, " d_model"], max_rank: int
) -> Float64[Tensor, "rank d_model"]:
    """Return up to ``max_rank`` right singular vectors of ``differences``, signed by ``delta``."""
    count = min(max_rank, *differences.shape)
    rows = torch.linalg.svd(differences, full_matrices=False).Vh[:count]
    return signed_by_delta(rows, delta)
