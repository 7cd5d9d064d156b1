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

    def __init__(self, read: Float[Tensor, "rank d_model"], dtype: torch.dtype) -> None:
        self._read = read
        self._is_short = dtype in SHORT
        self._width = max(1, -(-read.shape[1] // BLOCKS))
        self._inverses: dict[tuple[int, int], Tensor | None] = {}
        self._left = read[:, :0]

    def begin(self, n_columns: int) -> None:
        """Forget what is left: other columns come."""
        shape = (len(self._read), n_columns)
        self._left = torch.zeros(shape, dtype=self._read.dtype, device=self._read.device)

    def store(self, exact: Float[Tensor, "coordinate column"], first: int, result: Tensor) -> None:
        """Write the coordinates from ``first`` on, ``exact``, to ``result``.

        ``exact`` is used up.
        """
        if not self._is_short:
            result.copy_(exact)
            return
        for start in range(0, len(exact), self._width):
            stop = min(start + self._width, len(exact))
            self._store(exact[start:stop], first + start, result[start:stop])

    def _store(self, exact: Tensor, first: int, result: Tensor) -> None:
        last = first + len(exact)
        read = self._read[:, first:last]
        if (first, last) not in self._inverses:
            self._inverses[first, last] = self._inverse(read)
        inverse = self._inverses[first, last]
        if inverse is not None:
            exact.addmm_(read.T, inverse @ self._left, alpha=-1)
            self._left.zero_()
        result.copy_(exact)
        self._left.addmm_(read, exact.sub_(result), alpha=-1)

    def _inverse(self, read: Float[Tensor, "rank coordinate"]) -> Tensor | None:
        """Return (V Vᵀ)⁻¹ of the block, or None where it leaves the error to the next."""
        gram = read @ read.T
        even = self._read.square().sum(dim=1).min() * read.shape[1] / self._read.shape[1]
        if not bool(torch.linalg.eigvalsh(gram)[0] >= WELL_CONDITIONED * even):
            return None
        return torch.linalg.inv(gram)


def store_rounded(
    exact: Float[Tensor, "d_model column"], read: Float[Tensor, "rank d_model"], result: Tensor
) -> None:
    """Write all coordinates of ``exact`` to ``result`` in its type; ``exact`` is used up."""
    rounding = Rounding(read, result.dtype)
    rounding.begin(exact.shape[1])
    rounding.store(exact, 0, result)
