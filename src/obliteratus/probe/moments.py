"""Means and variances of a stream of activations, exact to float64, in one pass."""

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.probe.activations import Moments


class MomentsAccumulator:
    """Adds chunks of activations and gives their :class:`Moments`.

    Chunks are merged by the parallel form of Welford's update (Chan, Golub and LeVeque 1979):
    M = M₁ + M₂ + (m₂ − m₁)² n₁n₂ / n. A sum of squares would lose every digit on coordinates whose
    mean is large beside their spread, and residual streams have such coordinates.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._moments: Moments | None = None

    def add(self, chunk: Float[Tensor, "prompt position d_model"]) -> None:
        """Add the rows of ``chunk``, in its own precision."""
        if not len(chunk):
            return
        rows = chunk.to(device="cpu", dtype=torch.float64)
        mean = rows.mean(dim=0)
        self._take(Moments(len(rows), mean, (rows - mean).square().sum(dim=0)))

    def merge(self, other: "MomentsAccumulator") -> None:
        """Add everything that ``other`` has seen."""
        if other._moments is not None:
            self._take(other._moments)

    def _take(self, new: Moments) -> None:
        self._moments = new if self._moments is None else merged(self._moments, new)

    def result(self) -> Moments:
        """Return the moments of everything added.

        Raises:
            MeasurementError: nothing was added.
        """
        if self._moments is None:
            raise MeasurementError("there are no activations to take moments of; add prompts.")
        return self._moments


def merged(one: Moments, other: Moments) -> Moments:
    """Return the moments of two samples taken together."""
    count = one.count + other.count
    step = other.mean - one.mean
    return Moments(
        count=count,
        mean=one.mean + step * (other.count / count),
        squared_deviation=one.squared_deviation
        + other.squared_deviation
        + step.square() * (one.count * other.count / count),
    )
