"""Affine ablation in weights: remove R from every writer, and put R Rᵀμ back once."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.edits.stream import same_space, stream_rows
from obliteratus.errors import EditError
from obliteratus.models.loaded import ModelOutline
from obliteratus.operator.edit import WeightEdit


def with_mean(
    model: ModelOutline, edits: Sequence[WeightEdit], directions: Directions, *, offset: float = 0.0
) -> list[WeightEdit]:
    """Return ``edits`` with R Rᵀμ + c r added to the stream once, by the first embedding table.

    Together they make x' = x − R Rᵀ(x − μ) + c r at every layer and token (2411.09003): μ is
    ``directions.mean``, the harmless mean where the directions were read, r their first row and c
    ``offset`` in units of the stream. With filters V it is x' = x − RᵀV(x − μ) + c r (columns as
    rows), μ the mean of all prompts: the affine term (I − P) μ of LEACE (2306.03819). The table
    gets the shift divided by the multiplier of the embedding. A head tied to it is separated first,
    as before any edit of an embedding.

    Raises:
        EditError: there is no single μ, a writer keeps a part of R or has another one, or the
            embedding does not reach every later layer as it is.
    """
    mean = directions.mean
    if mean is None:
        raise EditError(
            "edit.affine=mean needs one harmless mean for all layers, and these directions have "
            "none: each layer has its own. Set distill.selection=published."
        )
    embedding = next((edit for edit in edits if edit.site.component == "embedding"), None)
    if embedding is None:
        raise EditError(
            "edit.affine=mean puts the mean into the embedding, which is left as it is. Set "
            "edit.layers=all and edit.embedding=edit."
        )
    _check_reach(model, embedding)
    _check_removal(model, edits, embedding)
    rows, read = embedding.write_basis, embedding.read_basis
    first = torch.nn.functional.normalize(directions.basis["embedding"][0].to(rows), dim=0)
    shift = (read @ mean.to(rows)) @ rows + offset * first
    shifted = dataclasses.replace(embedding, bias_shift=shift / embedding.site.multiplier)
    return [shifted if edit is embedding else edit for edit in edits]


def affine_target(edits: Sequence[WeightEdit]) -> Float64[Tensor, " d_model"] | None:
    """Return t = R Rᵀμ + c r, to which ``edits`` bring the stream within R; None without a shift.

    Affine edits have one strength s (1, or a share of it: ``EditPlan.scaled``), and their shift is
    s t: x' = x − s R Rᵀ (x − t).
    """
    total = [
        edit.bias_shift * edit.site.multiplier / edit.strengths[0]
        for edit in edits
        if edit.bias_shift is not None
    ]
    return torch.stack(total).sum(0) if total else None


def _check_reach(model: ModelOutline, embedding: WeightEdit) -> None:
    """Refuse where a constant in the embedding is not that constant at every layer."""
    reason = None
    if embedding.site.post_norm is not None:
        reason = "a norm stands between the embedding and the stream, which rescales the mean"
    elif model.anatomy.block_scale is not None:
        reason = "every block multiplies the whole stream, and the mean in it, by a scalar"
    elif math.isnan(embedding.site.multiplier):
        reason = "the multiplier of its embedding is not in the checkpoint (edit it in memory)"
    if reason is not None:
        raise EditError(
            f"edit.affine=mean is not exact in a '{model.anatomy.model_type}' model: {reason}. Set "
            "edit.affine=none, or use hooks at run time."
        )


def _check_removal(model: ModelOutline, edits: Sequence[WeightEdit], embedding: WeightEdit) -> None:
    """Refuse unless every writer loses exactly the space of ``embedding``."""
    edited = {edit.site.name: edit for edit in edits}
    removed = stream_rows(model, embedding)
    for site in model.anatomy.writers:
        edit = edited.get(site.name)
        if edit is None or not bool((edit.strengths == 1).all()):
            raise EditError(
                f"edit.affine=mean needs every writer edited at strength 1, and {site.name} is "
                "not. Set edit.strength=1 and edit.layers=all, and leave edit.strengths out."
            )
        rows = stream_rows(model, edit)
        if not same_space(rows, removed):
            raise EditError(
                f"edit.affine=mean needs the same directions at every layer, and {site.name} has "
                "its own. Set distill.selection=published and an extractor of one direction for "
                "all layers."
            )
