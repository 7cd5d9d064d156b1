"""What of a model the edit settings reach, and how strongly each matrix is edited."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.errors import EditError, UsageError
from obliteratus.models.anatomy import Anatomy, Layout, WeightSite
from obliteratus.settings import EditSettings
from obliteratus.shapes import Layer


def check_targets(anatomy: Anatomy, settings: EditSettings) -> None:
    """Check that ``settings`` name blocks and components that the model has.

    Raises:
        UsageError: a block is beyond the last one, or no matrix belongs to a named component; the
            message says what there is.
    """
    last = anatomy.n_layers - 1
    named = {
        "edit.layers": settings.blocks or (),
        "edit.strengths.layers": settings.strengths.blocks,
    }
    for key, ranges in named.items():
        beyond = next((blocks for blocks in ranges if blocks[-1] > last), None)
        if beyond is not None:
            raise UsageError(f"{key} names layer {beyond[-1]}; the model has layers 0 to {last}.")
    present = {site.component for site in (*anatomy.writers, head_site(anatomy))}
    for component in settings.strengths.components:
        if component not in present:
            raise UsageError(
                f"edit.strengths.components names '{component}', and no matrix of this "
                f"'{anatomy.model_type}' model belongs to it; there are "
                f"{', '.join(sorted(present))}."
            )


def chosen_layers(
    anatomy: Anatomy, directions: Directions, settings: EditSettings
) -> tuple[Layer, ...]:
    """Return the layers of ``directions`` whose writers ``settings`` let be edited.

    Raises:
        EditError: a layer that ``settings.layers`` names has no directions, or no layer is strong.
    """
    if settings.layers == "strong":
        if not directions.strong_layers:
            raise EditError(
                "edit.layers=strong, and which layers are strong is undetermined: at none of them "
                "do separation, bypass and induce all exceed their nulls on these prompts. Set "
                "edit.layers=all or a range such as 8-16, or give more prompts (raise "
                "distill.select_prompts)."
            )
        return tuple(layer for layer in directions.strong_layers if layer in directions.basis)
    everything: tuple[Layer, ...] = tuple(
        layer for layer in directions.basis if layer != "embedding" or settings.edits_embedding
    )
    if settings.blocks is None:
        return everything
    asked: list[Layer] = [layer for blocks in settings.blocks for layer in blocks]
    if "embedding" in settings.layers.split(",") and settings.edits_embedding:
        asked.append("embedding")
    missing = next((layer for layer in asked if layer not in directions.basis), None)
    if missing is not None:
        raise EditError(
            f"edit.layers names {missing}, for which '{directions.method}' gave no direction. "
            "Leave it out, or distill directions for it."
        )
    return tuple(layer for layer in directions.basis if layer in asked)


def site_strengths(
    site: WeightSite,
    layer: Layer,
    directions: Directions,
    settings: EditSettings,
    *,
    edited: Sequence[Layer],
) -> Float64[Tensor, " rank"]:
    """Return the strengths of the directions at ``layer`` in one matrix: a product of factors.

    They are ``settings.strength``, or that of ``directions`` where the settings leave it open,
    ``directions.strengths`` (the head is tuned by none: 1) and ``settings.strengths``, whose
    ``middle`` counts within the ``edited`` layers.

    Raises:
        UsageError: ``settings`` give fewer factors than there are directions.
    """
    strength = directions.strength if settings.strength is None else settings.strength
    factors = settings.strengths
    common = strength * factors.of_layer(site.layer) * factors.of_component(site.component)
    common *= factors.of_place(site.layer, sorted(each for each in edited if isinstance(each, int)))
    rank = len(directions.basis[layer])
    given = common * torch.tensor(factors.of_directions(rank), dtype=torch.float64)
    if directions.strengths is None or site.component == "head":
        return given
    return given * directions.strengths[layer][site.component]


def head_site(anatomy: Anatomy) -> WeightSite:
    """Return the head as a matrix that is edited on its input side, W' = W (I − Vᵀ A U).

    Its layout is turned round, so that d_model is where an edit looks for it, and its bias, which
    has the width of the vocabulary, is left out.
    """
    head = next(site for site in anatomy.sites if site.component == "head")
    turned: Layout = "in_out" if head.layout == "out_in" else "out_in"
    return dataclasses.replace(head, layout=turned, bias=None)


def head_layer(anatomy: Anatomy) -> Layer:
    """Return the layer whose basis a head is edited along: the output of the last block."""
    return anatomy.n_layers - 1
