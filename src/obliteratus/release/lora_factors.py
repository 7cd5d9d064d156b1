"""ΔW of edits as two thin matrices, and how peft's layers store them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.models.anatomy import Layout
from obliteratus.operator.edit import WeightEdit
from obliteratus.operator.grro import Operator, edit_vector
from obliteratus.operator.matrices import chunks, matrices, working_dtype


@dataclass(frozen=True)
class Factors:
    """ΔW = write · read for a matrix seen as [d_model, d_in], exactly of rank ``rank``.

    One edit has write = −Uᵀ A, which all experts of a fused tensor share, and read = V W of each
    expert (one where nothing is fused).
    """

    write: Float64[Tensor, "d_model rank"]
    read: Float64[Tensor, "expert rank d_in"]

    @property
    def rank(self) -> int:
        """The number of directions, and one for a shift."""
        return self.write.shape[1]

    def padded(self, rank: int) -> "Factors":
        """Return the same ΔW with zero directions appended up to ``rank``."""
        missing = rank - self.rank
        return Factors(
            torch.nn.functional.pad(self.write, (0, missing)),
            torch.nn.functional.pad(self.read, (0, 0, 0, missing)),
        )

    def halves(self, *, is_turned: bool) -> tuple[Tensor, Tensor]:
        """Return lora_A [expert · rank, in] and lora_B [out, rank · expert] as peft lays them out.

        A layer that takes the stored matrix for [out, in] where it is [in, out] ``is_turned``: then
        the two factors change places, ΔWᵀ = readᵀ · writeᵀ.
        """
        write = self.write.expand(len(self.read), -1, -1)
        below, above = (write.mT, self.read.mT) if is_turned else (self.read, write)
        lora_a = below.reshape(-1, below.shape[-1])
        lora_b = above.permute(1, 2, 0).reshape(above.shape[1], -1)
        return lora_a.contiguous(), lora_b.contiguous()


def factors_of(
    weight: Tensor, edits: Sequence[WeightEdit], *, layout: Layout | None = None
) -> Factors:
    """Return ΔW of ``edits``, one after the other, on ``weight`` [*expert, rows, columns].

    The second edit reads what the first has left: S₂ = V₂ (W + ΔW₁). A ``bias_shift`` of an
    embedding adds one direction that every token has. ``layout`` is that of the edits' site unless
    given. ``weight`` is dequantised; the result is on the CPU in float64.
    """
    views = matrices(weight, edits[0].site.layout if layout is None else layout)
    writes: list[Tensor] = []
    reads: list[Tensor] = []
    for edit in edits:
        rows = torch.stack([_read(view, edit.read_basis) for view in views])
        for write, read in zip(writes, reads, strict=True):
            rows = rows + (edit.read_basis @ write) @ read
        writes.append(-edit.write_basis.T * edit.strengths)
        reads.append(rows)
        if edit.bias_shift is not None and edit.site.component == "embedding":
            writes.append(edit.bias_shift[:, None])
            reads.append(torch.ones_like(rows[:, :1]))
    return Factors(torch.cat(writes, dim=1), torch.cat(reads, dim=1))


def edited_bias(
    bias: Float64[Tensor, " d_model"], edits: Sequence[WeightEdit]
) -> Float64[Tensor, " d_model"]:
    """Return b' = b − Uᵀ A V b + shift after ``edits``, one after the other."""
    for edit in edits:
        bias = edit_vector(bias, Operator(edit.write_basis, edit.read_basis, edit.strengths))
        bias = bias if edit.bias_shift is None else bias + edit.bias_shift
    return bias


def _read(matrix: Tensor, read_basis: Tensor) -> Float64[Tensor, "rank d_in"]:
    """Return V W in float64, by chunks of input columns."""
    dtype = working_dtype(matrix)
    rows = read_basis.to(matrix.device, dtype)
    along = torch.empty((len(rows), matrix.shape[1]), dtype=dtype, device=matrix.device)
    for chunk in chunks(matrix):
        along[:, chunk] = rows @ matrix[:, chunk].to(dtype)
    return along.to("cpu", torch.float64)
