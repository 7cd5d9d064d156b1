"""Bases of an edit: orthonormal rows, and the dual pairs that act behind a post-norm."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import DirectionError

ORTHONORMAL_TOLERANCE = 1e-6
"""Largest entry of |B Bᵀ − I| that passes: what float32 storage of a basis costs, with room."""
DEPENDENT = 1e-6
"""A row keeping less than this share of its length after projection is dependent on the others."""
TURNED_NOTHING = 1e-12
"""Largest entry of |T − I| at which a change of basis T is rounding only."""


def orthonormalise(
    rows: Float[Tensor, "rank d_model"], *, tolerance: float = DEPENDENT
) -> Float64[Tensor, "rank d_model"]:
    """Return orthonormal float64 rows that span the same subspaces, first row first.

    Gram-Schmidt by QR: row i of the result is the normalised part of row i that is orthogonal to
    rows 0…i−1, with its sign kept, so the first row keeps its direction.

    Raises:
        DirectionError: a row is not finite, is zero, or keeps no more than ``tolerance`` of its
            length after projection on the rows before it.
    """
    if rows.shape[0] == 0 or rows.shape[0] > rows.shape[1]:
        raise DirectionError(
            f"a basis needs between 1 and d_model = {rows.shape[1]} rows, not {rows.shape[0]}."
        )
    exact = rows.to("cpu", torch.float64)
    norms = torch.linalg.vector_norm(exact, dim=1)
    if not bool(torch.isfinite(norms).all()) or bool((norms == 0).any()):
        raise DirectionError("a direction is zero or not finite; drop it before the edit.")
    columns, triangle = torch.linalg.qr((exact / norms[:, None]).T)
    kept = torch.diagonal(triangle.detach())
    if float(kept.abs().min()) <= tolerance:
        row = int(kept.abs().argmin())
        raise DirectionError(
            f"direction {row} depends on those before it: {float(kept[row].abs()):.1e} of its "
            "length is left after projecting them out. Drop it."
        )
    return (columns * kept.sign()).T.contiguous()


def check_orthonormal(basis: Float[Tensor, "rank d_model"]) -> None:
    """Check that the rows of ``basis`` are orthonormal.

    Raises:
        DirectionError: the largest entry of |B Bᵀ − I| exceeds ``ORTHONORMAL_TOLERANCE``.
    """
    check_dual(basis, basis, what="basis rows must be orthonormal", cure="orthonormalise")


def check_dual(
    write: Float[Tensor, "rank d_model"],
    read: Float[Tensor, "rank d_model"],
    *,
    what: str = "write and read basis must be dual",
    cure: str = "oblique_bases or orthogonal_bases",
) -> None:
    """Check that V Uᵀ = I for write basis U and read basis V.

    Raises:
        DirectionError: the largest entry of |V Uᵀ − I| exceeds ``ORTHONORMAL_TOLERANCE``.
    """
    gram = read.detach().to(torch.float64) @ write.detach().to(torch.float64).T
    error = float(
        (gram - torch.eye(len(gram), dtype=torch.float64, device=gram.device)).abs().max()
    )
    if not error <= ORTHONORMAL_TOLERANCE:
        raise DirectionError(
            f"{what}; the largest Gram error is {error:.1e}. Pass it through {cure} first."
        )


def oblique_bases(
    basis: Float[Tensor, "rank d_model"], gain: Float[Tensor, " d_model"], *, centred: bool = False
) -> tuple[Float64[Tensor, "rank d_model"], Float64[Tensor, "rank d_model"]]:
    """Return U = R ⊘ g and V = g ⊙ R: the edit before a post-norm whose result stays parallel.

    The write g ⊙ z / rms(z) of the edited z' = z − Uᵀ A V z is parallel to the write with R
    removed, scaled by s = rms(z) / rms(z'), which depends on the token.

    A LayerNorm (``centred``) writes g ⊙ C z, which is orthogonal to h = 1 ⊘ g whatever z is, so no
    edit stays parallel unless R is orthogonal to h. Then V = C(g ⊙ R), and U is the one whose write
    is nearest to it: U = (R − (R h) h⊥ / |h⊥|²) ⊘ g, h⊥ = h − RᵀR h (docs/design/architecture.md).

    Raises:
        DirectionError: a gain is zero, so R ⊘ g does not exist (use :func:`orthogonal_bases`),
            ``basis`` is not orthonormal, or it spans h, along which a LayerNorm writes nothing.
    """
    check_orthonormal(basis)
    exact, gain = basis.to(torch.float64), gain.to(torch.float64)
    if not bool((gain != 0).all()):
        raise DirectionError(
            f"{int((gain == 0).sum())} gains of the post-norm are zero, so no oblique edit exists. "
            "Set edit.post_norm=orthogonal."
        )
    if not centred:
        return exact / gain, exact * gain
    constant = 1 / gain
    along = exact @ constant
    rest = constant - exact.T @ along
    _check_written(rest[None], constant[None])
    nearest = exact - torch.outer(along, rest) / rest.square().sum()
    return nearest / gain, _centred(exact * gain)


def orthogonal_bases(
    basis: Float[Tensor, "rank d_model"], gain: Float[Tensor, " d_model"], *, centred: bool = False
) -> tuple[Float64[Tensor, "rank d_model"], Float64[Tensor, "rank d_model"]]:
    """Return U = V = orth(g ⊙ R): the smallest edit before a post-norm that removes R behind it.

    Before a LayerNorm (``centred``) it is orth(C(g ⊙ R)), C z = z − mean(z). It exists where gains
    are zero and changes the weights least, but the write that is left is not parallel to the write
    with R removed.

    Raises:
        DirectionError: g ⊙ R has dependent rows (or centred ones), or ``basis`` is not orthonormal.
    """
    check_orthonormal(basis)
    read = basis.to(torch.float64) * gain.to(torch.float64)
    if centred:
        _check_written(_centred(read), read)
        read = _centred(read)
    rows = orthonormalise(read)
    return rows, rows.clone()


def independent(rows: Float[Tensor, "rank d_model"], *, tolerance: float) -> tuple[int, ...]:
    """Return the indices of the rows that keep more than ``tolerance`` of their length.

    Each row is projected on the complement of those kept before it, so of two near-dependent rows
    the first stays. A row that is zero or not finite keeps nothing.
    """
    kept: list[int] = []
    exact = rows.detach().to("cpu", torch.float64)
    basis = exact[:0]
    for index, row in enumerate(exact):
        size = torch.linalg.vector_norm(row)
        left = row / size
        for _ in range(2):  # once loses digits to cancellation
            left = left - (left @ basis.T) @ basis
        share = torch.linalg.vector_norm(left)
        if float(share) > tolerance and bool(torch.isfinite(size)):
            kept.append(index)
            basis = torch.cat([basis, (left / share)[None]])
    return tuple(kept)


def dual_bases(
    vectors: Float[Tensor, "rank d_model"],
    write: Float64[Tensor, "rank d_model"],
    read: Float64[Tensor, "rank d_model"],
    images: Float64[Tensor, "rank d_model"] | None = None,
) -> tuple[Float64[Tensor, "rank d_model"], Float64[Tensor, "rank d_model"]]:
    """Return U and V in which each of ``vectors``, not of an orthonormal basis, has a strength.

    In the stream U = V₀ᵀ (the unit ``vectors``) and V = V₀⁺, so the edit is I − V₀ diag(α) V₀⁺: the
    part that ``vectors`` j explains is scaled by 1 − α_j in whatever order they come, and equal
    strengths give the orthogonal edit. ``write`` and ``read`` are the pair for the orthonormalised
    vectors R at equal strengths; behind a post-norm that pair, whose read rows span the ``images``
    Gᵀ R of the rows of R (g ⊙ R for a gain g), is turned within its spans. Orthonormal vectors
    without images give it back.

    Raises:
        DirectionError: the vectors are dependent.
    """
    rows = orthonormalise(vectors)
    units = vectors.to(rows) / torch.linalg.vector_norm(vectors.to(rows), dim=1, keepdim=True)
    images = rows if images is None else images.to(rows)
    align = images @ torch.linalg.pinv(read)  # images = align · read within the span of read
    turn = torch.linalg.solve(rows @ units.T, align)
    if float((turn - torch.eye(len(rows), dtype=turn.dtype)).abs().max()) <= TURNED_NOTHING:
        return write, read
    return torch.linalg.inv(turn).T @ write, turn @ read


def _check_written(left: Tensor, whole: Tensor) -> None:
    """Refuse directions of which, up to rounding, nothing goes through a LayerNorm."""
    share = float((left.norm(dim=1) / whole.norm(dim=1)).min().detach())
    if share <= DEPENDENT:
        raise DirectionError(
            f"the directions span 1 ⊘ gain up to {share:.1e} of its length, and a LayerNorm writes "
            "nothing along it. Drop that direction."
        )


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)
