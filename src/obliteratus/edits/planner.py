"""Turn directions and settings into an :class:`EditPlan`: one edit for each matrix that writes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.errors import EditError, UnsupportedArchitectureError
from obliteratus.events import Deviation, DeviationRecorded, emit
from obliteratus.models.anatomy import Anatomy, WeightSite
from obliteratus.models.describe import is_tied
from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.matrices import spent_energy, write_gram
from obliteratus.operator.removal import site_edit
from obliteratus.settings import EditSettings
from obliteratus.shapes import Layer

SIZE_GATE = 2.0
"""‖ΔW‖ / ‖W‖ past which an oblique edit is no longer a small change of the model."""


def plan(
    model: ModelOutline,
    directions: Directions,
    settings: EditSettings = EditSettings(),  # noqa: B008  (frozen)
    *,
    strengths: Sequence[float] | None = None,
) -> EditPlan:
    """Return the edits of ``model`` that ``directions`` and ``settings`` ask for.

    A writer of block i is edited along ``directions.basis[i]`` and an embedding along
    ``directions.basis["embedding"]``; where there is no basis there is no edit. With
    ``layers="strong"`` only the strong blocks are edited and the embedding is left, because it is
    not a block. ``strengths`` gives each direction its own (row j of a basis takes the j-th; bases
    may have fewer rows); without it every direction takes ``settings.strength``, or that of
    ``directions`` where the settings leave it open. Behind a post-norm ``settings.post_norm``
    chooses U = R ⊘ g, V = g ⊙ R or U = V = orth(g ⊙ R).

    Raises:
        UnsupportedArchitectureError: parameters are not accounted for, or removal in the weights of
            this architecture is inexact.
        EditError: there is nothing to edit, there are fewer strengths than directions, or an
            oblique edit would change a matrix by more than twice its own norm.
        DirectionError: a basis is degenerate, or a post-norm gain is zero in an oblique edit.
    """
    check_architecture(model.anatomy)
    chosen = _chosen_layers(model.anatomy, directions, settings)
    bases = {layer: orthonormalise(directions.basis[layer]) for layer in chosen}
    strength = directions.strength if settings.strength is None else settings.strength
    edits: list[WeightEdit] = []
    for site in model.anatomy.writers:
        layer = _layer_of(site)
        if layer in bases:
            rows = bases[layer]
            alphas = _strengths(len(rows), strength, strengths)
            edits.append(_edit(model, site, rows, alphas, settings))
    if not edits:
        raise EditError(
            "the plan is empty: no writer of the model is at a layer with directions. Set "
            "edit.layers=all, or distill directions for more layers."
        )
    is_full = bool((edits[0].strengths == 1).all()) and settings.layers == "all"
    deviations = _deviations(settings, directions, is_full=is_full)
    for deviation in deviations:
        emit(DeviationRecorded(deviation))
    return EditPlan(tuple(edits), _unties(model, edits), deviations, model.source.sample)


def check_architecture(anatomy: Anatomy) -> None:
    """Check that weights of this anatomy can be edited exactly.

    Raises:
        UnsupportedArchitectureError: a parameter is not declared, or only hooks are exact.
    """
    if anatomy.unmatched:
        shown = ", ".join(anatomy.unmatched[:3]) + (", …" if len(anatomy.unmatched) > 3 else "")
        raise UnsupportedArchitectureError(
            f"{len(anatomy.unmatched)} parameters of this '{anatomy.model_type}' model may read or "
            f"write the residual stream and are not declared: {shown}. Declare them in "
            f"models/families/{anatomy.family}.py; `obliteratus inspect MODEL` lists them all."
        )
    if anatomy.hooks_only is not None:
        raise UnsupportedArchitectureError(
            f"the weights of a '{anatomy.model_type}' model cannot be edited exactly: "
            f"{anatomy.hooks_only}. Use hooks at run time instead."
        )


def _chosen_layers(
    anatomy: Anatomy, directions: Directions, settings: EditSettings
) -> tuple[Layer, ...]:
    width = {rows.shape[1] for rows in directions.basis.values()}
    if width - {anatomy.d_model}:
        raise EditError(
            f"the directions have width {max(width)}, the model's stream {anatomy.d_model}; they "
            "come from another model. Distill them from this one."
        )
    if settings.layers == "strong":
        return tuple(layer for layer in directions.strong_layers if layer in directions.basis)
    return tuple(
        layer for layer in directions.basis if layer != "embedding" or settings.embedding == "edit"
    )


def _layer_of(site: WeightSite) -> Layer:
    return "embedding" if site.layer is None else site.layer


def _strengths(
    rank: int, strength: float, each: Sequence[float] | None
) -> Float64[Tensor, " rank"]:
    if each is None:
        return torch.full((rank,), strength, dtype=torch.float64)
    if len(each) < rank:
        raise EditError(
            f"{len(each)} strengths were given for {rank} directions; give one for each."
        )
    return torch.tensor(each[:rank], dtype=torch.float64)


def _edit(
    model: ModelOutline,
    site: WeightSite,
    rows: Float64[Tensor, "rank d_model"],
    strengths: Float64[Tensor, " rank"],
    settings: EditSettings,
) -> WeightEdit:
    edit = site_edit(model, site, rows, strengths, norm=settings.norm, post_norm=settings.post_norm)
    if site.post_norm is not None and settings.post_norm == "oblique":
        _check_size(model, edit)
    return edit


def _check_size(model: ModelOutline, edit: WeightEdit) -> None:
    """Refuse an oblique edit whose ‖ΔW‖ / ‖W‖ exceeds ``SIZE_GATE``."""
    weight = model.module.get_parameter(edit.site.name).detach()
    if weight.is_meta:
        return  # the executor that reads the weights looks
    norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    size = change_energy(edit, weight) ** 0.5 / norm if norm else 0.0
    if size > SIZE_GATE:
        raise EditError(
            f"the oblique edit of {edit.site.name} would change it by {size:.1f} times its own "
            f"norm (at most {SIZE_GATE:g}): small gains of its post-norm blow R ⊘ g up. Set "
            "edit.post_norm=orthogonal, or use hooks at run time."
        )


def change_energy(edit: WeightEdit, weight: Tensor) -> float:
    """Return ‖ΔW‖² = ‖Uᵀ A V W‖² of ``edit`` on ``weight``, before any norm is restored."""
    read_gram, _ = write_gram(weight, edit.read_basis, edit.site.layout)
    return spent_energy(edit.write_basis @ edit.write_basis.T, read_gram, edit.strengths)


def _unties(model: ModelOutline, edits: Sequence[WeightEdit]) -> bool:
    return any(
        is_tied(model.module, edit.site)
        for edit in edits
        if edit.site.component == "embedding" and bool(edit.strengths.any())
    )


def _deviations(
    settings: EditSettings, directions: Directions, *, is_full: bool
) -> tuple[Deviation, ...]:
    if not is_full:
        return ()
    if settings.embedding == "leave" and "embedding" in directions.basis:
        reason = "edit.embedding=leave"
    elif "embedding" not in directions.basis:
        reason = f"the extractor '{directions.method}' gave no direction for the embedding"
    else:
        return ()
    return (
        Deviation(
            where="embedding",
            asked="removal from the whole residual stream",
            done="the embedding was left as it is; what it writes along the directions stays",
            reason=reason,
        ),
    )
