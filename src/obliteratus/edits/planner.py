"""Turn directions and settings into an :class:`EditPlan`: one edit for each matrix that writes."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.edits.affine import with_mean
from obliteratus.edits.stream import same_space
from obliteratus.edits.targets import chosen_layers, head_layer, head_site, site_strengths
from obliteratus.errors import EditError, UnsupportedArchitectureError
from obliteratus.events import Deviation, DeviationRecorded, emit
from obliteratus.models.anatomy import Anatomy, WeightSite
from obliteratus.models.describe import is_tied
from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.bases import DEPENDENT, dual_bases, independent, orthonormalise
from obliteratus.operator.behind import norm_behind
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.matrices import spent_energy, write_gram
from obliteratus.operator.removal import site_edit
from obliteratus.settings import EditSettings
from obliteratus.shapes import Layer

SIZE_GATE = 2.0
"""‖ΔW‖ / ‖W‖ past which an oblique edit is no longer a small change of the model."""
NEARLY_DEPENDENT = 0.05
"""Share of its length outside the directions before it (3 degrees) below which a direction cannot
have a strength of its own: the dual basis is as long as the inverse of it."""


def plan(
    model: ModelOutline,
    directions: Directions,
    settings: EditSettings = EditSettings(),  # noqa: B008  (frozen)
) -> EditPlan:
    """Return the edits of ``model`` that ``directions`` and ``settings`` ask for.

    A writer of block i is edited along ``directions.basis[i]`` and an embedding along
    ``directions.basis["embedding"]``; where there is no basis, or ``settings.layers`` leaves the
    layer out, there is no edit. The strengths are those of
    :func:`obliteratus.edits.targets.site_strengths`. Where the
    directions of a basis have different strengths these belong to the rows as they are given, by
    their dual basis (:func:`obliteratus.operator.bases.dual_bases`); rows that depend on those
    before them are dropped with a Deviation. Behind a post-norm ``settings.post_norm`` chooses
    U = R ⊘ g, V = g ⊙ R or U = V = orth(g ⊙ R). Directions with filters V are edited obliquely,
    I − RᵀAV, at one strength for all of a basis. ``settings.affine`` adds
    :func:`obliteratus.edits.affine.with_mean`.

    Raises:
        UnsupportedArchitectureError: parameters are not accounted for, or removal in the weights of
            this architecture is inexact.
        EditError: there is nothing to edit, an oblique edit would change a matrix by more than
            twice its own norm, the affine edit cannot be exact, or directions with filters meet
            what is not defined for them: unequal strengths, the head, a LayerNorm behind a writer.
        UsageError: there are fewer strengths than directions.
        DirectionError: a basis is degenerate, or a post-norm gain is zero in an oblique edit.
    """
    check_architecture(model.anatomy)
    _check_width(model.anatomy, directions)
    chosen = chosen_layers(model.anatomy, directions, settings)
    vectors, dropped = _independent(directions, chosen, settings)
    edits: list[WeightEdit] = []
    for site in model.anatomy.writers:
        layer = _layer_of(site)
        if layer in vectors:
            alphas = site_strengths(site, layer, directions, settings, edited=chosen)
            kept, rows = vectors[layer]
            read = directions.filters[layer][list(kept)] if directions.filters else None
            edits.append(_edit(model, site, rows, alphas[list(kept)], settings, read=read))
    if not edits:
        raise EditError(
            "the plan is empty: no writer of the model is at a layer with directions. Set "
            "edit.layers=all, or distill directions for more layers."
        )
    edits.extend(_head_edit(model, directions, settings))
    if settings.affine == "mean":
        edits = with_mean(model, edits, directions, offset=settings.affine_offset)
    deviations = (*dropped, *_left_embedding(edits, settings, directions))
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


def _check_width(anatomy: Anatomy, directions: Directions) -> None:
    width = {rows.shape[1] for rows in directions.basis.values()}
    if width - {anatomy.d_model}:
        raise EditError(
            f"the directions have width {max(width)}, the model's stream {anatomy.d_model}; they "
            "come from another model. Distill them from this one."
        )


def _layer_of(site: WeightSite) -> Layer:
    return "embedding" if site.layer is None else site.layer


def _independent(
    directions: Directions, layers: Sequence[Layer], settings: EditSettings
) -> tuple[dict[Layer, tuple[tuple[int, ...], Tensor]], tuple[Deviation, ...]]:
    """Return the indices and rows of each basis that are independent, and what was dropped."""
    is_uneven = len(set(settings.strengths.directions)) > 1
    tolerance = NEARLY_DEPENDENT if is_uneven else DEPENDENT
    found: dict[Layer, tuple[tuple[int, ...], Tensor]] = {}
    dropped: dict[tuple[int, ...], list[Layer]] = {}
    for layer in layers:
        rows = directions.basis[layer]
        kept = independent(rows, tolerance=tolerance)
        if not kept:
            orthonormalise(rows)  # says what is wrong with the first row
        found[layer] = (kept, rows[list(kept)])
        lost = tuple(row for row in range(len(rows)) if row not in kept)
        if lost:
            dropped.setdefault(lost, []).append(layer)
    return found, tuple(_dropped(lost, where, tolerance) for lost, where in dropped.items())


def _dropped(lost: Sequence[int], where: Sequence[Layer], tolerance: float) -> Deviation:
    names = ", ".join(str(row) for row in lost)
    return Deviation(
        where="layers " + ", ".join(str(layer) for layer in where),
        asked="an edit along every direction of the basis",
        done=f"direction{'s' if len(lost) > 1 else ''} {names} (counted from 0) left out",
        reason=f"no more than {tolerance:g} of the length lies outside the directions before",
    )


def _edit(
    model: ModelOutline,
    site: WeightSite,
    vectors: Float64[Tensor, "rank d_model"],
    strengths: Float64[Tensor, " rank"],
    settings: EditSettings,
    *,
    read: Float64[Tensor, "rank d_model"] | None = None,
) -> WeightEdit:
    rows = orthonormalise(vectors)
    edit = site_edit(
        model, site, rows, strengths, norm=settings.norm, post_norm=settings.post_norm, read=read
    )
    is_uneven = bool((strengths != strengths[0]).any())
    if is_uneven and read is not None:
        raise EditError(
            "directions with filters take one strength for all of a basis. Leave "
            "edit.strengths.directions out."
        )
    if is_uneven:
        behind = norm_behind(model, site)
        images = rows if behind is None else behind.read_along(rows)
        write, read = dual_bases(vectors, edit.write_basis, edit.read_basis, images)
        edit = dataclasses.replace(edit, write_basis=write, read_basis=read)
        if behind is not None and behind.centres:
            edit = dataclasses.replace(edit, stream_basis=behind.stream_basis(rows, read))
    if read is not None or (site.post_norm is not None and settings.post_norm == "oblique"):
        _check_size(model, edit)
    return edit


def _head_edit(
    model: ModelOutline, directions: Directions, settings: EditSettings
) -> list[WeightEdit]:
    """Return the edit of the head where one is asked for: it is none by default."""
    if settings.strengths.of_component("head") == 0:
        return []
    layer = head_layer(model.anatomy)
    if layer not in directions.basis:
        raise EditError(
            f"the head is edited along the direction of layer {layer}, and '{directions.method}' "
            "gave none there. Leave edit.strengths.components.head out."
        )
    if directions.filters:
        raise EditError(
            "the head cannot be edited along directions with filters: what it would have to read "
            "is not defined. Leave edit.strengths.components.head out."
        )
    site = head_site(model.anatomy)
    vectors, _ = _independent(directions, [layer], settings)
    kept, rows = vectors[layer]
    alphas = site_strengths(site, layer, directions, settings, edited=())
    return [_edit(model, site, rows, alphas[list(kept)], settings)]


def _check_size(model: ModelOutline, edit: WeightEdit) -> None:
    """Refuse an oblique edit whose ‖ΔW‖ / ‖W‖ exceeds ``SIZE_GATE``."""
    weight = model.module.get_parameter(edit.site.name).detach()
    if weight.is_meta:
        return  # edits/shards.py looks, when it has the matrix
    norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    size = change_energy(edit, weight) ** 0.5 / norm if norm else 0.0
    check_size(edit, size)


def check_size(edit: WeightEdit, size: float) -> None:
    """Check ‖ΔW‖ / ‖W‖ = ``size`` of an edit before a post-norm, or along filters.

    Raises:
        EditError: it is an oblique edit, and ``size`` exceeds ``SIZE_GATE``.
    """
    if size <= SIZE_GATE or torch.equal(edit.write_basis, edit.read_basis):
        return
    start = (
        f"the oblique edit of {edit.site.name} would change it by {size:.1f} times its own norm "
        f"(at most {SIZE_GATE:g}): "
    )
    if edit.site.post_norm is not None:
        raise EditError(
            f"{start}small gains of its post-norm blow R ⊘ g up. Set edit.post_norm=orthogonal, or "
            "use hooks at run time."
        )
    if not same_space(orthonormalise(edit.write_basis), orthonormalise(edit.read_basis)):
        raise EditError(
            f"{start}the filter is far longer than what it removes. Give several times "
            "more prompts than the stream is wide, or set distill.extractor=difference_of_means."
        )


def change_energy(edit: WeightEdit, weight: Tensor) -> float:
    """Return ‖ΔW‖² = ‖Uᵀ A V W‖² of ``edit`` on ``weight``, before any norm is restored."""
    read_gram, _ = write_gram(weight, edit.read_basis, edit.site.layout)
    return spent_energy(edit.write_basis @ edit.write_basis.T, read_gram, edit.strengths)


def _unties(model: ModelOutline, edits: Sequence[WeightEdit]) -> bool:
    return any(
        is_tied(model.module, edit.site)
        for edit in edits
        if edit.site.component in ("embedding", "head") and bool(edit.strengths.any())
    )


def _left_embedding(
    edits: Sequence[WeightEdit], settings: EditSettings, directions: Directions
) -> tuple[Deviation, ...]:
    """Return a Deviation where all blocks were asked to be cleaned and the embedding is not."""
    is_full = all(
        bool((edit.strengths == 1).all()) for edit in edits if edit.site.layer is not None
    )
    if not is_full or settings.layers != "all":
        return ()
    if "embedding" not in directions.basis:
        reason = f"the extractor '{directions.method}' gave no direction for the embedding"
    elif settings.embedding == "leave":
        reason = "edit.embedding=leave"
    elif settings.strengths.of_component("embedding") == 0:
        reason = "edit.strengths.components.embedding=0"
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
