"""Mini-batches of fit prompts for optimisation by gradient."""

from collections.abc import Sequence

import numpy as np


class Batches:
    """Draws from each pool without replacement until too few are left, then from all again."""

    def __init__(self, pools: Sequence[Sequence[int]], size: int, seed: int) -> None:
        """Draw ``size`` numbers from each of ``pools`` at a time, or all if there are fewer."""
        self._generator = np.random.default_rng(seed)
        self._pools = [np.array(pool) for pool in pools]
        self._size = size
        self._waiting: list[list[int]] = [[] for _ in pools]

    def draw(self) -> tuple[list[int], ...]:
        """Return the next numbers of each pool."""
        drawn: list[list[int]] = []
        for waiting, pool in zip(self._waiting, self._pools, strict=True):
            if len(waiting) < min(self._size, len(pool)):
                waiting[:] = self._generator.permutation(pool).tolist()
            drawn.append(waiting[: self._size])
            del waiting[: self._size]
        return tuple(drawn)
