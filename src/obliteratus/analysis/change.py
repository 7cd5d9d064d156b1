"""Does a change of one matrix scale what the matrix itself writes along a direction?

An edit is ΔW = −Uᵀ A V W: low rank, as that of an adapter may be, but its *right* side is made of
W's own rows, V ΔW = −A V W. Training has no reason to give that, whatever its rank and however
many matrices share its left side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy import linalg, stats
from torch import Tensor

from obliteratus.analysis.writes import Write, difference, gram
from obliteratus.errors import MeasurementError

Form = Literal["orthogonal", "oblique"]

MOST = 8
"""Left vectors looked at in a matrix: edits have one to a few, and each takes d_in / 8 inputs."""
INPUTS_PER_VECTOR = 8
"""Fewer inputs per vector, and the rows of a random change can be combined into those of W."""
FLOOR = 1e-10
"""Share of the largest energy of ΔW below which a left vector is rounding."""
FIT = 0.8
"""Least cos² of v ΔW and v W. It is 1 after an edit, 0.5 where W was drawn anew, and near 0 after
training; a kept norm, rounding and narrow matrices take some of it."""
SIDE = 0.25
"""Share of the largest strength below which another direction is the side effect of a kept norm:
row factors are strengths too, of single coordinates."""
CONTRAST = 3.0
"""How many times more v W is scaled than the rest of W: 1 where W was multiplied by a number."""
BEYOND_ROWS = 0.03
"""Share of the change along the directions that they must explain beyond what factors for the rows
of W do. It is at most 0 where rows were rescaled (a folded norm, DoRA), and 1 − 2 Σ rᵢ⁴ + Σ rᵢ⁶
after an edit along r, less in a matrix that is nearly of rank 1."""


@dataclass(frozen=True)
class ChangedWrite:
    """How one matrix differs from that of the base.

    ``size`` is ‖ΔW‖ / ‖W‖. ``left`` are the leading left vectors of ΔW as unit directions of the
    stream, with ``weights`` their shares of ‖ΔW‖². ``directions`` are unit directions of the stream
    along which the matrix was edited, with ``strengths`` α, V W' = (1 − α) V W; both are empty
    where the change is none of an edit. ``energy`` is the share of ‖ΔW‖² along the directions (or
    the first left vector), ``energy_before`` that of ‖W‖². ``fit`` is the best cos² of v ΔW and
    v W, ``null_fit`` its mean and ``p_value`` its chance where the two are unrelated. ``contrast``
    is how many times more those v W with a fit are scaled than the rest of W, ``beyond_rows`` the
    share of their change that they explain beyond what factors of W's rows do; both are of the best
    v where none has a fit. ``form`` says how a norm behind the matrix was taken into account.
    """

    name: str
    layer: int | None
    component: str
    size: float
    left: Float64[Tensor, "many d_model"]
    weights: Float64[Tensor, " many"]
    directions: Float64[Tensor, "rank d_model"]
    strengths: tuple[float, ...]
    energy: float
    energy_before: float
    fit: float
    null_fit: float
    p_value: float
    contrast: float
    beyond_rows: float
    form: Form = "orthogonal"


@dataclass(frozen=True)
class _Reading:
    """What candidate rows v read of W and of ΔW: α, cos² and the combination of rows, of each."""

    form: Form
    read: Float64[Tensor, "many d_model"]
    strengths: Float64[np.ndarray, " row"]
    fits: Float64[np.ndarray, " row"]
    mix: Float64[np.ndarray, "row many"]

    @property
    def best(self) -> float:
        return float(self.fits.max(initial=0.0))

    @property
    def fitting(self) -> Int64[np.ndarray, " rank"]:
        """The rows with a fit, or the best one; none where rotations alone were found."""
        found = np.flatnonzero(self.fits >= FIT)
        return found if len(found) else np.argsort(-self.fits)[:1]


def changed_write(write: Write, base: Write) -> ChangedWrite | None:
    """Compare a matrix with that of the base; None where they are equal, or the base has zeros.

    The candidates are combinations of the leading left vectors l of ΔW, as read vectors v: v = l
    where an edit is orthogonal, v = Gᵀ(g ⊙ l) where it is oblique before a norm of gain g. They are
    the left eigenvectors of B in V ΔW = B V W (least squares), so directions of several strengths
    are told apart.

    Raises:
        MeasurementError: the matrices have different shapes, or hold numbers that are not finite.
    """
    if write.matrix.shape != base.matrix.shape:
        raise MeasurementError(
            f"{write.name} has shape {tuple(write.matrix.shape)} and {base.name} of the base "
            f"{tuple(base.matrix.shape)}. Give the checkpoint that the model was made from."
        )
    change, before = gram(write.matrix, base.matrix), gram(base.matrix)
    energy, whole = float(change.trace()), float(before.trace())
    if not np.isfinite(energy + whole):
        raise MeasurementError(
            f"{write.name} holds numbers that are not finite, here or in the base. Download or "
            "copy the checkpoint again."
        )
    if energy == 0 or whole == 0:
        return None
    left, shares = _leading(change, write.matrix.shape[1])
    readings = [_reading("orthogonal", left, write, base)]
    if base.behind is not None:
        oblique = base.behind.read_along(base.behind.gain * left)
        readings.append(_reading("oblique", oblique, write, base))
    reading = max(readings, key=lambda each: each.best)
    beyond = _beyond_row_factors(reading, write, base)
    rest = _rest(torch.from_numpy(reading.mix[reading.fitting]) @ left, change, before)
    kept, contrast = _kept(reading, rest, beyond)
    chosen = left[:1] if not len(kept) else torch.from_numpy(reading.mix[kept]) @ left
    span = torch.linalg.qr(chosen.T).Q
    degrees = len(left), max(write.matrix.shape[1] - len(left), 1)
    return ChangedWrite(
        name=write.name,
        layer=write.site.layer,
        component=write.site.component,
        size=float(np.sqrt(energy / whole)),
        left=_in_stream(left, reading.form, base),
        weights=shares,
        directions=_in_stream(chosen, reading.form, base) if len(kept) else left[:0],
        strengths=tuple(reading.strengths[kept].tolist()),
        energy=_energy(change, span) / energy,
        energy_before=_energy(before, span) / whole,
        fit=reading.best,
        null_fit=degrees[0] / sum(degrees),
        p_value=float(stats.beta.sf(reading.best, degrees[0] / 2, degrees[1] / 2)),
        contrast=contrast,
        beyond_rows=beyond,
        form=reading.form,
    )


def _leading(
    change: Float64[Tensor, "d_model d_model"], d_in: int
) -> tuple[Float64[Tensor, "many d_model"], Float64[Tensor, " many"]]:
    """Return the leading left vectors of ΔW, from ΔW ΔWᵀ, and their shares of its energy."""
    d_model = len(change)
    many = max(1, min(MOST, d_in // INPUTS_PER_VECTOR, d_model // 4))
    values, vectors = linalg.eigh(change.numpy(), subset_by_index=[d_model - many, d_model - 1])
    falling, rows = values[::-1].copy(), vectors[:, ::-1].T.copy()
    stands = falling > FLOOR * falling[0]
    shares = falling[stands] / float(change.trace())
    return torch.from_numpy(rows[stands]), torch.from_numpy(shares)


def _reading(
    form: Form, read: Float64[Tensor, "many d_model"], write: Write, base: Write
) -> _Reading:
    many = len(read)
    both = torch.zeros((2 * many, 2 * many), dtype=torch.float64)
    for columns, old in _columns(write, base):
        rows = torch.cat([read @ columns, read @ old])
        both.addmm_(rows, rows.T)
    products = both.numpy()
    changed, across, old = products[:many, :many], products[:many, many:], products[many:, many:]
    values, vectors = np.linalg.eig((across @ linalg.pinvh(old)).T)
    real = np.abs(np.imag(values)) <= 1e-9 * np.abs(values).max(initial=0.0)
    mix = np.real(vectors[:, real]).T
    scale = np.einsum("ij,jk,ik->i", mix, old, mix)
    moved = np.einsum("ij,jk,ik->i", mix, changed, mix)
    along = np.einsum("ij,jk,ik->i", mix, across, mix)
    sizes = np.maximum(scale * moved, np.finfo(np.float64).tiny)
    strengths = -along / np.maximum(scale, np.finfo(np.float64).tiny)
    return _Reading(form, read, strengths, along**2 / sizes, mix)


def _kept(
    reading: _Reading, rest: float, beyond_rows: float
) -> tuple[Int64[np.ndarray, " rank"], float]:
    """Return the numbers of the rows along which W was edited, and the contrast."""
    scaled = np.abs(reading.strengths[reading.fitting])
    largest = float(scaled.max(initial=0.0))
    contrast = largest / max(rest, np.finfo(np.float64).eps)
    if reading.best < FIT or contrast < CONTRAST or beyond_rows < BEYOND_ROWS:
        return reading.fitting[:0], contrast
    return reading.fitting[scaled >= max(CONTRAST * rest, SIDE * largest)], contrast


def _rest(
    rows: Float64[Tensor, "rank d_model"],
    change: Float64[Tensor, "d_model d_model"],
    before: Float64[Tensor, "d_model d_model"],
) -> float:
    """Return ‖ΔW‖ / ‖W‖ outside the span of ``rows``; infinite where W has nothing there."""
    span = torch.linalg.qr(rows.T).Q
    rest = max(float(change.trace()) - _energy(change, span), 0.0)
    rest_before = float(before.trace()) - _energy(before, span)
    return float(np.sqrt(rest / rest_before)) if rest_before > 0 else float("inf")


def _beyond_row_factors(reading: _Reading, write: Write, base: Write) -> float:
    """Return the share of the change along the rows with a fit that they alone explain.

    It is ‖Q (ΔW − diag(f) W)‖² / ‖Q ΔW‖² − (1 − cos²), Q the span of these rows and f the factors
    of rows that fit best, fᵢ = ΔWᵢ · Wᵢ / ‖Wᵢ‖².
    """
    mix = torch.from_numpy(reading.mix[reading.fitting])
    rows = torch.linalg.qr((mix @ reading.read).T).Q.T
    along, sizes = torch.zeros((2, len(base.matrix)), dtype=torch.float64)
    for columns, old in _columns(write, base):
        along += (columns * old).sum(1)
        sizes += old.square().sum(1)
    factors = (along / sizes.clamp_min(torch.finfo(torch.float64).tiny))[:, None]
    moved = beyond = 0.0
    for columns, old in _columns(write, base):
        moved += float((rows @ columns).square().sum())
        beyond += float((rows @ (columns - factors * old)).square().sum())
    fit = float(reading.fits[reading.fitting].min(initial=1.0))
    return beyond / moved - (1 - fit) if moved > 0 else 0.0


def _columns(
    write: Write, base: Write
) -> Iterator[tuple[Float64[Tensor, "d_model _"], Float64[Tensor, "d_model _"]]]:
    """Yield ΔW and W, some columns at a time."""
    return zip(difference(write.matrix, base.matrix), difference(base.matrix, None), strict=True)


def _energy(
    product: Float64[Tensor, "d_model d_model"], span: Float64[Tensor, "d_model rank"]
) -> float:
    return float(((product @ span) * span).sum())


def _in_stream(
    rows: Float64[Tensor, "many d_model"], form: Form, base: Write
) -> Float64[Tensor, "many d_model"]:
    """Return left vectors before a norm as unit directions behind it.

    U = R ⊘ g gives R = g ⊙ U; U = V = g ⊙ R gives R = U ⊘ g, and 0 where nothing gets through.
    """
    if base.behind is not None:
        gain = base.behind.gain
        through = torch.where(gain != 0, 1 / torch.where(gain != 0, gain, 1.0), 0.0)
        rows = rows * (gain if form == "oblique" else through)
    sizes = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / sizes.clamp_min(torch.finfo(torch.float64).tiny)
