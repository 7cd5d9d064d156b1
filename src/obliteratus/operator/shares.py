"""Several shares of one edit at once: the strength of each row of a batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.operator.edit import StreamEdit, WeightEdit


class Shares:
    """The gain of :func:`obliteratus.operator.hooks.edited` where rows differ in their share.

    It follows :class:`obliteratus.probe.variants.Variants`: before each pass it is told which of
    the shares each row has.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        """``shares`` multiply the strengths of the edit; they are numbered from 0."""
        self._shares = torch.tensor(shares, dtype=torch.float64)
        self._now: float | Float[Tensor, " row"] = 0.0

    def __len__(self) -> int:
        """Return how many shares there are."""
        return len(self._shares)

    def turn(self, rows: Sequence[int]) -> None:
        """Give the rows of the next pass the shares with these numbers."""
        self._now = self._shares[list(rows)]

    def turn_all(self, number: int) -> None:
        """Give every row of the passes that follow the share with this number."""
        self._now = float(self._shares[number])

    def __call__(self, edit: WeightEdit | StreamEdit) -> float | Float[Tensor, " row"]:
        """Return the share, the same for every edit."""
        del edit
        return self._now
