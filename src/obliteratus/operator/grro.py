"""The Generalized Refusal Removal Operator on one matrix: W' = W − Uᵀ A V W, A = diag(strengths).

Pure functions of tensors. A matrix is worked on in chunks of input columns in float64 (float32
where the device has no float64) and cast back once, so memory beyond the result stays small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import EditError
from obliteratus.models.anatomy import Layout
from obliteratus.operator.bases import check_dual, check_orthonormal
from obliteratus.operator.matrices import chunks, matrices, working_dtype
from obliteratus.operator.norms import frobenius_scale, keep_columns, keep_rows
from obliteratus.operator.rounding import Rounding, store_rounded
from obliteratus.settings import Norm


@dataclass(frozen=True)
class MatrixChange:
    """What an edit did to one matrix, measured on the numbers as stored.

    Frobenius norms: ``norm_before`` ‖W‖, ``norm_after`` ‖W'‖, ``change`` ‖W' − W‖, ``read_before``
    ‖V W‖ and ``read_after`` ‖V W'‖ with the rows of V at unit length, and ``error``
    ‖V W' − (I − A) V W D‖, where D holds the factors of the columns (1 unless a norm was kept), so
    rounding after an exact edit of any strength. ``columns_lost`` counts input columns that lay in
    the basis and could not keep their norm; ``row_error`` is the largest relative error of a kept
    row norm (both 0 where the norm was not asked for).
    """

    norm_before: float
    norm_after: float
    change: float
    read_before: float
    read_after: float
    error: float
    columns_lost: int = 0
    row_error: float = 0.0

    @property
    def energy_removed(self) -> float:
        """‖W' − W‖² / ‖W‖²: the share of the matrix's energy that the edit moved."""
        return (self.change / self.norm_before) ** 2 if self.norm_before else 0.0

    @property
    def residual(self) -> float:
        """‖V W'‖ / ‖V W‖: |1 − strength| after an exact edit; 0 where there was nothing."""
        return self.read_after / self.read_before if self.read_before else 0.0


@dataclass(frozen=True)
class Operator:
    """U, V and A of one edit, the layout of its matrix, and which norm is kept."""

    write: Float[Tensor, "rank d_model"]
    read: Float[Tensor, "rank d_model"]
    strengths: Float[Tensor, " rank"]
    layout: Layout = "out_in"
    norm: Norm = "none"

    def __post_init__(self) -> None:
        """Check duality.

        Raises:
            DirectionError: V Uᵀ is not the identity.
        """
        check_dual(self.write, self.read)

    @property
    def is_identity(self) -> bool:
        """Whether every strength is 0, so that the tensor is to be skipped."""
        return not bool(self.strengths.any())

    def on(self, tensor: Tensor) -> "Operator":
        """Return the operator on the device of ``tensor`` in its working precision."""
        dtype = working_dtype(tensor)
        write, read, strengths = (
            part.to(tensor.device, dtype) for part in (self.write, self.read, self.strengths)
        )
        return Operator(write, read, strengths, self.layout, self.norm)


def remove_from_output(
    weight: Float[Tensor, "d_model d_in"],
    basis: Float[Tensor, "rank d_model"],
    *,
    strength: float = 1.0,
) -> Float[Tensor, "d_model d_in"]:
    """Scale down the part of ``weight``'s output that lies along ``basis``.

    W' = (I − s BᵀB) W, so B W' x = (1 − s) B W x for every x. Strength 0 keeps, 1 removes,
    2 reflects, and a negative value amplifies. ``weight`` itself is not modified.

    Raises:
        DirectionError: the rows of ``basis`` are not orthonormal.
    """
    check_orthonormal(basis)
    strengths = torch.full((basis.shape[0],), strength, dtype=torch.float64)
    return edit_matrix(weight, Operator(basis, basis, strengths))[0]


def edit_matrix(
    weight: Float[Tensor, "*expert rows columns"], operator: Operator, *, in_place: bool = False
) -> tuple[Float[Tensor, "*expert rows columns"], MatrixChange]:
    """Return W' = W − Uᵀ A V W in the layout and dtype of ``weight``, and what that changed.

    ``weight`` is [d_model, d_in] for layout ``out_in``, [d_in, d_model] for ``in_out``, with an
    expert axis in front for fused experts, each of which is edited alone. With ``in_place`` the
    result is written into ``weight``. Afterwards a norm is restored (``operator.norm``):

    * ``none``: nothing; V W' = (I − A) V W holds to rounding.
    * ``frobenius``: one scalar per matrix. V W' keeps its direction.
    * ``column``: every input column keeps its norm over d_model, exactly at strength 1.
    * ``row``: every output coordinate keeps its norm over d_in. A row scale writes the direction
      back, so it alternates with the projection and ends on the projection: V W' is exact, the row
      norms are approximate (``row_error``). One float64 copy of the matrix is needed.

    All strengths 0 return ``weight`` itself, bit for bit.

    Raises:
        EditError: the matrix has no d_model axis where the layout says, is not a floating-point
            matrix in memory, or contains numbers that are not finite.
    """
    _check(weight, operator)
    prepared, layout = operator.on(weight), operator.layout  # a tiny strength may become 0 here
    result = weight if in_place or prepared.is_identity else torch.empty_like(weight)
    changes = [
        _edit_one(old, new, prepared)
        for old, new in zip(matrices(weight, layout), matrices(result, layout), strict=True)
    ]
    return result, total_change(changes)


def edit_vector(
    vector: Float[Tensor, "*expert d_model"], operator: Operator
) -> Float[Tensor, "*expert d_model"]:
    """Return b' = b − Uᵀ A V b for a bias (one per expert where they are fused), in its dtype."""
    if operator.is_identity:
        return vector
    exact = operator.on(vector)
    wide = vector.to(exact.read.dtype)
    edited = wide - ((wide @ exact.read.T) * exact.strengths) @ exact.write
    flat = edited.view(-1, edited.shape[-1])
    result = torch.empty_like(vector)
    store_rounded(flat.T, exact.read, result.view(flat.shape).T)
    return result


def _check(weight: Tensor, operator: Operator) -> None:
    d_model = operator.read.shape[1]
    axis = -2 if operator.layout == "out_in" else -1
    if weight.is_meta or not weight.is_floating_point() or weight.ndim not in {2, 3}:
        raise EditError(
            f"a tensor of shape {tuple(weight.shape)} and type {weight.dtype} on "
            f"{weight.device} cannot be edited; load the model unquantised and in memory."
        )
    if weight.shape[axis] != d_model:
        raise EditError(
            f"a matrix of shape {tuple(weight.shape)} does not have d_model = {d_model} on axis "
            f"{axis}, where its layout '{operator.layout}' says it is. Correct the family file."
        )


def _project(columns: Tensor, operator: Operator) -> Tensor:
    weighted = operator.strengths[:, None] * (operator.read @ columns)
    return torch.addmm(columns, operator.write.T, weighted, alpha=-1)


def _edit_one(old: Tensor, new: Tensor, operator: Operator) -> MatrixChange:
    """Edit the view ``old`` [d_model, d_in] into ``new``, which may be the same memory.

    Two buffers serve all chunks: fresh ones would cost more in page faults than the arithmetic.
    """
    dtype, device = operator.read.dtype, old.device
    scale: Tensor | float = 1.0
    by_rows, row_error, columns_lost = None, 0.0, 0
    if operator.norm == "frobenius":
        scale = frobenius_scale(old, partial(_project, operator=operator), dtype)
    elif operator.norm == "row" and not operator.is_identity:
        wide = old.to(dtype)
        projected = _project(wide, operator)
        by_rows, row_error = keep_rows(wide, projected, operator.write, operator.read)
    length = torch.linalg.vector_norm(operator.read, dim=1, keepdim=True)
    strengths, rounding = operator.strengths[:, None], Rounding(operator.read, new.dtype)
    slices = list(chunks(old))
    size = max((old[:, chunk].numel() for chunk in slices), default=0)
    buffers = [torch.empty(size, dtype=dtype, device=device) for _ in range(2)]
    sums = torch.zeros(6, dtype=dtype, device=device)
    for chunk in slices:
        before, after = (_buffer(buffer, old[:, chunk]) for buffer in buffers)
        before.copy_(old[:, chunk])
        read = operator.read @ before
        if operator.is_identity:
            sums += _squares(before, before, read[:0], read / length, read / length, read[:0])
            continue
        if by_rows is None:
            torch.addmm(before, operator.write.T, strengths * read, alpha=-1, out=after)
        else:
            after.copy_(by_rows[:, chunk])
        if operator.norm == "column":
            scale, lost = keep_columns(before, after)
            columns_lost += lost
        if operator.norm in {"column", "frobenius"}:
            after.mul_(scale)
        stored_read = rounding.store(after, new[:, chunk])
        error = stored_read - (1 - strengths) * read * scale
        reads = (part / length for part in (read, stored_read, error))
        norms = _squares(before, after)  # before it becomes the change
        sums += torch.cat([norms, _squares(before.sub_(after), *reads)])
    return _change(sums, columns_lost, row_error)


def _buffer(memory: Tensor, like: Tensor) -> Tensor:
    """Return the beginning of ``memory`` with the shape and the order of ``like``."""
    if like.stride(1) == 1:
        return memory[: like.numel()].view(like.shape)
    return memory[: like.numel()].view(like.shape[::-1]).T


def _squares(*parts: Tensor) -> Float[Tensor, " part"]:
    return torch.stack([torch.linalg.vector_norm(part) for part in parts]).square()


def _change(
    sums: Float[Tensor, "6"], columns_lost: int = 0, row_error: float = 0.0
) -> MatrixChange:
    if not bool(torch.isfinite(sums).all()):
        raise EditError(
            "the matrix holds numbers that are not finite, before or after the edit; load the "
            "model in bfloat16 or float32 and check the checkpoint."
        )
    before, after, change, read, left, error = (math.sqrt(total) for total in sums.tolist())
    return MatrixChange(before, after, change, read, left, error, columns_lost, row_error)


def total_change(changes: Sequence[MatrixChange]) -> MatrixChange:
    """Return what was done to matrices, or to groups of input columns of one, taken together."""

    def root(name: str) -> float:
        return math.sqrt(sum(getattr(change, name) ** 2 for change in changes))

    return MatrixChange(
        norm_before=root("norm_before"),
        norm_after=root("norm_after"),
        change=root("change"),
        read_before=root("read_before"),
        read_after=root("read_after"),
        error=root("error"),
        columns_lost=sum(change.columns_lost for change in changes),
        row_error=max(change.row_error for change in changes),
    )
