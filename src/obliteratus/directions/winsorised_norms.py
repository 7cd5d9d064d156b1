"""Difference of class means in which no prompt is longer than a quantile of its class."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.difference_of_means import with_axes
from obliteratus.directions.knobs import Quantile
from obliteratus.directions.samples import EXTRACTORS, Samples, signed_by_delta, unit


@EXTRACTORS.register("winsorised_norms")
def winsorised_norms(
    samples: Samples, *, max_rank: int = 1, quantile: Quantile = 0.99
) -> Float64[Tensor, "rank d_model"]:
    """Return the difference of the class means of shortened prompts, normalised.

    A vector x longer than the ``quantile`` c of the norms of its class becomes x c / ‖x‖: its
    direction stays, its leverage does not. One massive prompt cannot carry a mean, but a share of
    more than 1 − ``quantile`` of them can; at 1 it is the difference in means. Unlike
    ``winsorised_coordinates`` it does not depend on the axes of the stream, and a prompt that is
    wild in one coordinate only is shortened in all. The sign is fixed by δ; rows 1… are the main
    axes of the pair differences around row 0.

    Raises:
        DirectionError: the means do not differ, or are not finite.
    """
    difference = _mean(samples.harmful, quantile) - _mean(samples.harmless, quantile)
    return with_axes(signed_by_delta(unit(difference), samples.delta), samples, max_rank)


def _mean(rows: Float[Tensor, "prompt d_model"], quantile: float) -> Float64[Tensor, " d_model"]:
    exact = rows.to("cpu", torch.float64)
    norms = exact.norm(dim=1)
    longest = norms.quantile(quantile)
    factors = torch.where(norms > longest, longest / norms, 1.0)
    return (factors[:, None] * exact).mean(0)
