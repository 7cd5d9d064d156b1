"""Round an edited matrix to 16 bits without rounding the removed directions back into it.

Rounding to the nearest is not noise here: what an edit changes in row i and column j is V_i y_j,
and the error that rounding leaves is a saw-tooth of it. Along V the errors of a column add up, the
more so the wider the stream: 0.6 % of a random direction's share at width 2048, 1.6 % at 8192
(docs/design/rounding.md). With error feedback each block of coordinates takes up what rounding has
left along V in the blocks before it, so that only the last one's is left, and the numbers are no
further from the exact ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SHORT = (torch.bfloat16, torch.float16)
BLOCKS = 32
"""Parts into which the coordinates are cut: more leave less, and take longer."""
WELL_CONDITIONED = 1e-2
"""A block takes the error up if every direction has this share of its even part in it: less of it
would have to change a few numbers by far more than rounding does."""


class Rounding:
    """Rounds the blocks of coordinates of a matrix in turn, with error feedback in 16-bit types.

    Types of more than 16 bits are rounded to the nearest: their error is too small to matter.
    """

    def __init__(
        self, read: Float[Tensor, "rank d_model"], n_columns: int, dtype: torch.dtype
    ) -> None:
        self._read = read
        self._dtype = dtype
        self._left = torch.zeros((len(read), n_columns), dtype=read.dtype, device=read.device)

    def store(self, exact: Float[Tensor, "coordinate column"], first: int, result: Tensor) -> None:
        """Write the coordinates from ``first`` on, ``exact``, to ``result``.

        ``exact`` is used up.
        """
        if self._dtype not in SHORT:
            result.copy_(exact)
            return
        width = max(1, -(-self._read.shape[1] // BLOCKS))
        for start in range(0, len(exact), width):
            stop = min(start + width, len(exact))
            read = self._read[:, first + start : first + stop]
            self._store(exact[start:stop], read, result[start:stop])

    def _store(self, exact: Tensor, read: Tensor, result: Tensor) -> None:
        gram = read @ read.T
        if self._takes_up(gram, read.shape[1]):
            exact.addmm_(read.T, torch.linalg.solve(gram, self._left), alpha=-1)
            self._left.zero_()
        result.copy_(exact)
        self._left -= read @ exact.sub_(result)

    def _takes_up(self, gram: Float[Tensor, "rank rank"], n_rows: int) -> bool:
        even = self._read.square().sum(dim=1).min() * n_rows / self._read.shape[1]
        return bool(torch.linalg.eigvalsh(gram)[0] >= WELL_CONDITIONED * even)


def store_rounded(
    exact: Float[Tensor, "d_model column"], read: Float[Tensor, "rank d_model"], result: Tensor
) -> None:
    """Write all coordinates of ``exact`` to ``result`` in its type; ``exact`` is used up."""
    Rounding(read, exact.shape[1], result.dtype).store(exact, 0, result)
