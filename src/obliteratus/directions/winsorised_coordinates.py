"""Difference of winsorised means, each coordinate clipped across the prompts of its class."""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.difference_of_means import with_axes
from obliteratus.directions.knobs import Quantile
from obliteratus.directions.samples import EXTRACTORS, Samples, signed_by_delta, unit, unit_delta


@EXTRACTORS.register("winsorised_coordinates")
def winsorised_coordinates(
    samples: Samples, *, max_rank: int = 1, quantile: Quantile = 0.99
) -> Float64[Tensor, "rank d_model"]:
    """Return the difference of the coordinate-wise winsorised class means, normalised.

    In each class and coordinate, values beyond the ``quantile`` q and the 1 − q quantile are set to
    these (Tukey; Huber, Robust Statistics, 1981). A few wild values of a coordinate cannot carry
    its mean, but a share of more than 1 − q on one side can; q = 1 is the difference in means, and
    a lower q bounds more prompts at the price of noise and, in skewed coordinates, of bias. What it
    does depends on the axes of the stream; ``winsorised_norms`` does not. The sign is fixed by δ;
    rows 1… are the main axes of the pair differences around row 0.

    Raises:
        DirectionError: the winsorised means do not differ, or a number is not finite.
    """
    unit_delta(samples)  # or refuse: clipping would hide an infinity
    difference = _winsorised_mean(samples.harmful, quantile) - _winsorised_mean(
        samples.harmless, quantile
    )
    return with_axes(signed_by_delta(unit(difference), samples.delta), samples, max_rank)


def _winsorised_mean(
    rows: Float[Tensor, "prompt d_model"], quantile: float
) -> Float64[Tensor, " d_model"]:
    exact = rows.to("cpu", torch.float64)
    # numpy: torch.quantile refuses more than 16 million values
    ends = np.quantile(exact.numpy(), [1 - quantile, quantile], axis=0)
    low, high = torch.from_numpy(ends)
    return exact.clamp(low, high).mean(0)
