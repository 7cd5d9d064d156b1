"""Several variants of an edit in the same passes: which of them each row of a batch is."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.operator.hooks import Factor, Gain


class Lineup:
    """Variants that are numbered from 0, and the one that each row of the next pass is.

    It follows :class:`obliteratus.probe.variants.Variants`: before each pass it is told of its
    rows.
    """

    def __init__(self, count: int) -> None:
        """``count`` is how many variants there are."""
        self._count = count
        self._now: int | Sequence[int] | None = None

    def __len__(self) -> int:
        """Return how many variants there are."""
        return self._count

    def turn(self, rows: Sequence[int]) -> None:
        """Let the rows of the next pass be the variants with these numbers."""
        self._now = list(rows)

    def turn_all(self, number: int) -> None:
        """Let every row of the passes that follow be the variant with this number."""
        self._now = number

    def gain(self, gains: Float64[Tensor, " variant"]) -> float | Float[Tensor, " row"]:
        """Return what each row has of ``gains``, which are given by variant; 0 before any turn."""
        now = self._now
        if now is None:
            return 0.0
        return float(gains[now]) if isinstance(now, int) else gains[now]


class Shares(Lineup):
    """Shares of one edit: the gain of :func:`obliteratus.operator.hooks.edited` for all of them."""

    def __init__(self, shares: Sequence[float]) -> None:
        """``shares`` multiply the strengths of the edit."""
        super().__init__(len(shares))
        self._shares = torch.tensor(shares, dtype=torch.float64)

    def __call__(self, edit: WeightEdit | StreamEdit) -> Factor:
        """Return the share, the same for every part of the edit."""
        del edit
        return self.gain(self._shares)


class Members(Lineup):
    """Several edits, each entered with a gain of its own: 1 in its rows and 0 in all others."""

    def only(self, number: int) -> Gain:
        """Return the gain of the edit with this number."""
        own = torch.zeros(len(self), dtype=torch.float64)
        own[number] = 1.0

        def gain(edit: WeightEdit | StreamEdit) -> Factor:
            del edit
            return self.gain(own)

        return gain
