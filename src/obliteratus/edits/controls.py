"""Matched controls: the same plan along random directions that cost the same energy."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.edits.planner import change_energy
from obliteratus.edits.stream import filtered_pair, same_space, stream_rows
from obliteratus.errors import EditError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.behind import NormBehind, norm_behind
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.matrices import spent_energy, write_gram

ENERGY_TOLERANCE = 1e-6
"""Relative difference of Σ‖ΔW‖² between plan and control that is called matched."""
SPENT_ALREADY = 1e-6
"""Share of a random direction's energy below which the plan has been carried out already."""
SHIFT_TOLERANCE = 1e-9
"""Share of a shift outside the edited space that rounding explains."""
TILTS = 10
"""Passes over the weights spent on tilting a random draw until it can spend the energy."""
BISECTIONS = 60
STREAM = 0x0B117E2A705
"""Added to the seed, so that a control never repeats what another use of the seed has drawn."""
NEW_DIRECTION = 1e-8
"""What is left of a direction of length 1 after projection must exceed this to be a new one."""


def matched_random(plan: EditPlan, model: LoadedModel, seed: int = 0) -> EditPlan:
    """Return ``plan`` with each space replaced by a random one of equal rank and equal energy.

    Edits that share a space in ``plan`` share one in the control, with the same strengths, norm and
    post-norm treatment. A plain random direction moves another amount of weight than one that the
    model writes along, and scaling its strength would weaken or reflect instead of remove. So the
    draw is tilted instead: q ∝ cos θ·a + sin θ·b, with a uniform on the sphere and b the direction
    of most (or least) energy in the span of a, Ga, …, Gⁿa, G = Σ W Wᵀ over the edited writers, for
    the smallest n that reaches the energy; θ solves Σ‖ΔW‖_F²(control) = Σ‖ΔW‖_F²(plan), without
    norm preservation on either side. ``model`` is the one the plan was made for, before any edit.

    An edit with filters V = R + C S gets patterns and filters that lean apart as far, R' + C S'.

    A shift of a bias within the plan's space has the same coordinates in the control's.

    Raises:
        EditError: no tilted draw spends that energy, as when the plan has been carried out on
            ``model`` already, or the plan shifts a bias outside the space that it edits.
    """
    generator = torch.Generator().manual_seed(STREAM + seed)
    replaced: dict[str, WeightEdit] = {}
    for group in _groups(plan, model):
        replaced.update(_control(group, model, generator))
    edits = tuple(replaced.get(edit.site.name, edit) for edit in plan)
    return dataclasses.replace(plan, edits=edits)


@dataclass(frozen=True)
class _Member:
    """One edit of a group, with the norm behind it (None: straight into the stream).

    ``tilt`` is the C of filters V = R + C S, with S orthonormal and orthogonal to R; None where
    V = R. The directions of a tilted member are the rows of R and then those of S.
    """

    edit: WeightEdit
    norm: NormBehind | None
    tilt: Float64[Tensor, "rank rank"] | None = None

    @property
    def is_oblique(self) -> bool:
        write, read = (
            orthonormalise(rows) for rows in (self.edit.write_basis, self.edit.read_basis)
        )
        return not same_space(write, read)

    def bases(
        self, rows: Float64[Tensor, "many d_model"]
    ) -> tuple[Float64[Tensor, "rank d_model"], Float64[Tensor, "rank d_model"]]:
        if self.tilt is not None:
            pattern, aside = rows[: len(self.tilt)], rows[len(self.tilt) :]
            read = pattern + self.tilt @ aside
            if self.norm is None:
                return pattern, read
            return self.norm.bases(pattern, "oblique")[0], self.norm.read_along(read)
        if self.norm is None:
            return rows, rows
        return self.norm.bases(rows, "oblique" if self.is_oblique else "orthogonal")

    def along(self, rows: Float64[Tensor, "many d_model"]) -> WeightEdit:
        """Return the edit along other directions of the stream."""
        write, read = self.bases(rows)
        behind = None
        if self.norm is not None and self.norm.centres:
            behind = self.norm.stream_basis(rows, read)
        shift = self.edit.bias_shift
        if shift is not None:
            shift = (self.edit.read_basis @ shift) @ write
        return dataclasses.replace(
            self.edit, write_basis=write, read_basis=read, stream_basis=behind, bias_shift=shift
        )

    def raw(self, rows: Float64[Tensor, "many d_model"]) -> Float64[Tensor, "many d_model"]:
        """Return directions of the stream as directions of the raw write: g ⊙ r."""
        return rows if self.norm is None else self.norm.read_along(rows)

    def written(self, rows: Float64[Tensor, "many d_model"]) -> Float64[Tensor, "many d_model"]:
        """Return raw writes as what they are behind the norm, up to its scale."""
        return rows if self.norm is None else self.norm.written(rows)

    def coordinates(
        self, read: Float64[Tensor, "rank d_model"], frame: Float64[Tensor, "many d_model"]
    ) -> Float64[Tensor, "rank many"]:
        """Return C with ``read`` = C · raw(``frame``), for orthonormal ``frame``."""
        if self.norm is None:
            return read @ frame.T
        return torch.linalg.lstsq(self.raw(frame).T, read.T).solution.T


def _groups(plan: EditPlan, model: LoadedModel) -> list[list[_Member]]:
    """Put together the edits whose bases are one space of the stream."""
    groups: list[tuple[Tensor, list[_Member]]] = []
    for edit in plan:
        _check_shift(edit)
        if not bool(edit.strengths.any()):
            continue
        rows = stream_rows(model, edit)
        members = next((found for space, found in groups if same_space(space, rows)), None)
        if members is None:
            members = []
            groups.append((rows, members))
        members.append(_Member(edit, norm_behind(model, edit.site), _tilt(model, edit)))
    return [members for _, members in groups]


def _tilt(model: LoadedModel, edit: WeightEdit) -> Float64[Tensor, "rank rank"] | None:
    """Return C with C Cᵀ = (V − R)(V − R)ᵀ: how far the filters lean away from their patterns."""
    pair = filtered_pair(model, edit)
    if pair is None:
        return None
    away = pair[1] - pair[0]
    values, vectors = torch.linalg.eigh(away @ away.T)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _control(
    group: Sequence[_Member], model: LoadedModel, generator: torch.Generator
) -> dict[str, WeightEdit]:
    rank, d_model = group[0].edit.read_basis.shape
    if group[0].tilt is not None:
        rank *= 2
    start = orthonormalise(torch.randn((rank, d_model), generator=generator, dtype=torch.float64))
    wanted = sum(change_energy(member.edit, _weight(model, member.edit)) for member in group)
    rows = _spending(wanted, start, group, model)
    return {member.edit.site.name: member.along(rows) for member in group}


def _check_shift(edit: WeightEdit) -> None:
    """Refuse a shift that Uᵀ V does not give back: it has no counterpart in another space."""
    if edit.bias_shift is None:
        return
    inside = (edit.read_basis @ edit.bias_shift) @ edit.write_basis * edit.strengths.any()
    outside = float(torch.linalg.vector_norm(edit.bias_shift - inside))
    if outside > SHIFT_TOLERANCE * float(torch.linalg.vector_norm(edit.bias_shift)):
        raise EditError(
            f"the shift of {edit.site.name} leaves the space that is edited, so a control for it "
            "is not defined; plan without it."
        )


def _spending(
    wanted: float, start: Tensor, group: Sequence[_Member], model: LoadedModel
) -> Float64[Tensor, "rank d_model"]:
    """Tilt ``start`` within growing Krylov spaces of G until the group spends ``wanted``."""
    frame = start
    spread, spent = _applied(frame, group, model)
    if wanted <= SPENT_ALREADY * spent(start):
        raise EditError(
            "the model writes nothing along the plan's directions, so it seems to be edited "
            "already. Make the control before the edit is carried out."
        )
    goes_up = spent(start) < wanted
    end = start
    for _ in range(TILTS):
        frame = _extended(frame, spread[-len(start) :])
        spread, spent = _applied(frame, group, model)
        end = _extreme(frame, spread, start, largest=goes_up)
        if (spent(end) >= wanted) == goes_up:
            return _between(start, end, wanted, spent, goes_up=goes_up)
    raise EditError(
        f"no random direction moves the energy {wanted:.3e} (the nearest tried moves "
        f"{spent(end):.3e}). Make the control on the model that the edit was planned for, "
        "before it is carried out."
    )


def _extended(frame: Tensor, rows: Tensor) -> Float64[Tensor, "many d_model"]:
    """Return ``frame`` with what ``rows`` add to its span, orthonormal; it may be nothing."""
    added = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    for _ in range(2):  # once loses digits to cancellation
        added = added - (added @ frame.T) @ frame
    sizes = torch.linalg.svd(added, full_matrices=False)
    return torch.cat([frame, sizes.Vh[sizes.S > NEW_DIRECTION]])


def _extreme(
    frame: Tensor, spread: Tensor, start: Tensor, *, largest: bool
) -> Float64[Tensor, "rank d_model"]:
    """Return the directions in ``frame`` with the most (least) energy, turned towards ``start``."""
    vectors = torch.linalg.eigh(spread @ frame.T).eigenvectors.T
    chosen = vectors[-len(start) :] if largest else vectors[: len(start)]
    rows = chosen @ frame
    left, _, right = torch.linalg.svd(start @ rows.T)
    return (left @ right) @ rows


def _between(
    start: Tensor,
    end: Tensor,
    wanted: float,
    spent: Callable[[Tensor], float],
    *,
    goes_up: bool,
) -> Float64[Tensor, "rank d_model"]:
    """Bisect the angle between two bases; their energies bracket ``wanted``."""

    def at(angle: float) -> Tensor:
        return orthonormalise(math.cos(angle) * start + math.sin(angle) * end)

    low, high = 0.0, math.pi / 2
    for _ in range(BISECTIONS):
        rows = at((low + high) / 2)
        energy = spent(rows)
        if abs(energy - wanted) <= ENERGY_TOLERANCE * wanted:
            return rows
        if (energy < wanted) == goes_up:
            low = (low + high) / 2
        else:
            high = (low + high) / 2
    raise EditError("the control's energy could not be matched; try another seed for the control.")


def _applied(
    frame: Float64[Tensor, "many d_model"], group: Sequence[_Member], model: LoadedModel
) -> tuple[Tensor, Callable[[Tensor], float]]:
    """Pass over the weights once: return G·frame, and the energy of any basis in its span."""
    spread = torch.zeros_like(frame)
    grams: list[Tensor] = []
    for member in group:
        weight, layout = _weight(model, member.edit), member.edit.site.layout
        gram, product = write_gram(weight, member.raw(frame), layout)
        grams.append(gram)
        spread += member.written(product)

    def spent(basis: Tensor) -> float:
        total = 0.0
        for member, gram in zip(group, grams, strict=True):
            write, read = member.bases(basis)
            inside = member.coordinates(read, frame)
            total += spent_energy(write @ write.T, inside @ gram @ inside.T, member.edit.strengths)
        return total

    return spread, spent


def _weight(model: LoadedModel, edit: WeightEdit) -> Tensor:
    return model.module.get_parameter(edit.site.name).detach()
