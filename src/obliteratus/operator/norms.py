"""Norm preservation after an edit: three different things that go by one name.

Each is a claim to measure against an edit without it (see mathematics.md §1).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.operator.matrices import chunks

KEPT_COLUMN = 1e-6
"""A column keeping less than this share of its norm lies in the basis: its remainder is rounding,
and blowing it up to the old norm would write noise into the stream."""
ROW_SWEEPS = 50
"""Alternations between row norms and projection; most matrices need fewer than ten."""
ROW_TOLERANCE = 1e-3
"""Largest relative error of a row norm at which the alternation stops."""


def frobenius_scale(
    matrix: Float[Tensor, "d_model d_in"],
    project: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> float:
    """Return ‖W‖ / ‖project(W)‖, by chunks in ``dtype``; 1 where nothing is left to scale."""
    before = after = 0.0
    for chunk in chunks(matrix):
        columns = matrix[:, chunk].to(dtype)
        before += float(columns.square().sum())
        after += float(project(columns).square().sum())
    return math.sqrt(before / after) if after > 0 else 1.0


def keep_columns(
    before: Float[Tensor, "d_model d_in"], after: Float[Tensor, "d_model d_in"]
) -> tuple[Float[Tensor, " d_in"], int]:
    """Return the factors that bring the columns of ``after`` to their norms in ``before``.

    A column that lay in the basis (less than ``KEPT_COLUMN`` of it is left) keeps its remainder,
    factor 1; the number of those is returned too.
    """
    ones = before.new_ones(len(before))  # a product is several times faster than a norm over rows
    old, new = ((ones @ part.square()).sqrt() for part in (before, after))
    is_kept = new > KEPT_COLUMN * old
    scale = torch.where(is_kept, old / new.clamp_min(torch.finfo(new.dtype).tiny), 1.0)
    return scale, int((~is_kept & (old > 0)).sum())


def keep_rows(
    before: Float[Tensor, "d_model d_in"],
    after: Float[Tensor, "d_model d_in"],
    write: Float[Tensor, "rank d_model"],
    read: Float[Tensor, "rank d_model"],
) -> tuple[Float[Tensor, "d_model d_in"], float]:
    """Bring the row norms of ``after`` near those of ``before`` while V W' stays as it is.

    Rescaling a row writes the direction back, so rescaling alternates with the projection on
    {W' : V W' = V W_after} and ends on it. Where one coordinate dominates a direction its row
    cannot keep its norm: the largest relative error of a row norm is returned too.
    """
    target = read @ after
    wanted = torch.linalg.vector_norm(before, dim=1)
    tiny = torch.finfo(before.dtype).tiny
    result = after
    for sweep in range(ROW_SWEEPS + 1):
        norms = torch.linalg.vector_norm(result, dim=1)
        error = torch.where(wanted > 0, (norms - wanted).abs() / wanted.clamp_min(tiny), 0.0)
        if sweep == ROW_SWEEPS or float(error.max()) <= ROW_TOLERANCE:
            return result, float(error.max())
        result = result * (wanted / norms.clamp_min(tiny))[:, None]
        result = torch.addmm(result, write.T, read @ result - target, alpha=-1)
    raise AssertionError("the loop returns in its last sweep")
