"""Round an edited matrix to 16 bits without rounding the removed directions back into it.

Rounding to the nearest is not noise here: what an edit changes in row i and column j is V_i y_j,
and the error that rounding leaves is a saw-tooth of it. Along V the errors of a column add up, the
more so the wider the stream: 0.6 % of a random direction's share at width 2048, 1.6 % at 8192
(docs/design/rounding.md). With error feedback each block of coordinates takes up what rounding has
left along V in the blocks before it, so that only the last one's is left, and the numbers are no
further from the exact ones. The blocks halve: few of them, and a small last one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SHORT = (torch.bfloat16, torch.float16)
LAST = 64
"""The last block holds at least one in this many coordinates: a smaller one leaves less."""
WELL_CONDITIONED = 1e-2
"""A block takes the error up if every direction has this share of its even part in it: less of it
would have to change a few numbers by far more than rounding does."""


class Rounding:
    """Rounds the columns of a matrix, with error feedback in 16-bit types.

    Types of more than 16 bits are rounded to the nearest: their error is too small to matter.
    """

    def __init__(self, read: Float[Tensor, "rank d_model"], dtype: torch.dtype) -> None:
        self._read = read
        blocks = _halves(read.shape[1]) if dtype in SHORT else [slice(None)]
        first, *others = blocks
        self._blocks = [(first, None), *((block, self._taking(block)) for block in others)]

    def store(
        self, exact: Float[Tensor, "d_model column"], result: Float[Tensor, "d_model column"]
    ) -> Float[Tensor, "rank column"]:
        """Write ``exact`` to ``result`` in its type, and return V times what is stored.

        ``exact`` becomes what is stored.
        """
        stored = exact.new_zeros(len(self._read), exact.shape[1])
        left = torch.zeros_like(stored)
        for block, taking in self._blocks:
            read, part = self._read[:, block], exact[block]
            meant = read @ part
            if taking is not None:
                part.addmm_(taking, left, alpha=-1)
            result[block].copy_(part)
            part.copy_(result[block])
            found = read @ part
            left += found - meant
            stored += found
        return stored

    def _taking(self, block: slice) -> Tensor | None:
        """Return Vᵀ (V Vᵀ)⁻¹ of a block, or None where it leaves the error to the next."""
        read = self._read[:, block]
        gram = read @ read.T
        even = self._read.square().sum(dim=1).min() * read.shape[1] / self._read.shape[1]
        if not bool(torch.linalg.eigvalsh(gram)[0] >= WELL_CONDITIONED * even):
            return None
        return read.T @ torch.linalg.inv(gram)


def _halves(size: int) -> list[slice]:
    """Return blocks of which each is half of what is left, down to ``LAST``-ths of the whole."""
    last, start = max(1, size // LAST), 0
    blocks: list[slice] = []
    while size - start > last:
        stop = start + max(last, (size - start) // 2)
        blocks.append(slice(start, stop))
        start = stop
    return [*blocks, slice(start, size)]


def store_rounded(
    exact: Float[Tensor, "d_model column"], read: Float[Tensor, "rank d_model"], result: Tensor
) -> None:
    """Write ``exact`` to ``result`` in its type; ``exact`` becomes what is stored."""
    Rounding(read, result.dtype).store(exact, result)
