"""Numbers that describe how a model tells what it refuses, free of its size and of its scale.

All are ratios, cosines or shares, taken at the last token and at the same relative depths of every
model, so that models of different width, depth and family can be held against each other. The
noise of few prompts is taken out of squared lengths and products
(:mod:`obliteratus.analysis.layer_products`), so that they do not depend on how many there were.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.analysis import layer_products, products
from obliteratus.analysis.layer_products import LayerProducts
from obliteratus.analysis.products import Groups
from obliteratus.directions.samples import samples_at
from obliteratus.errors import MeasurementError
from obliteratus.measure.head import Head, chunks
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer

DEPTHS = (0.5, 0.75, 1.0)
"""Shares of the blocks that are behind: before the middle, few small models have a direction."""
FEWEST = 8
"""Prompts of a class, and of a category that counts."""
LENS_PROMPTS = 64
"""Prompts of a class that the head reads; a vocabulary has a hundred times as many tokens."""
Depths = Float64[np.ndarray, " depth"]


def imprint_features(activations: Activations, model: LoadedModel, head: Head) -> dict[str, float]:
    """Return the features by name, in one order for all models.

    At each of :data:`DEPTHS`, with δ the mean difference of the classes and W their variance:
    ``separation`` ‖δ‖² / (‖δ‖² + 2 tr W), the share of the squared distance of two prompts that
    their classes explain; ``spread`` log of harmful by harmless variance; ``norm`` log of the
    classes' mean lengths; ``along`` cos(δ, harmless mean); ``turn`` cos(δ, δ of the last block);
    ``rank`` of the category directions, 0 for one direction and 1 for as many as categories;
    ``lens`` Jensen-Shannon divergence (bits) of what the head would say to both classes. Then
    ``sure_harmful`` and ``sure_harmless``, the mean probability of the likeliest first token, and
    ``crossing``, the share of the blocks before the first whose separation is half of the largest.

    Raises:
        MeasurementError: prompts were not kept, there are fewer than 8 of a class, or fewer than
            two categories of 8 harmful prompts.
    """
    names = _categories(activations)
    blocks = [layer for layer in activations.layers if layer != "embedding"]
    position = max(activations.positions)
    stream = LayerProducts(activations, position)
    first = activations.layers.index(blocks[0])
    inner = stream.products(stream.once())[0][first:, first:]
    squared = np.maximum(np.diagonal(inner), 0.0)
    variance = _variances(activations, blocks, position)
    separation = squared / np.maximum(squared + variance.sum(axis=0), np.finfo(float).tiny)
    rows = [depth_row(depth, len(blocks)) for depth in DEPTHS]
    chosen = [blocks[row] for row in rows]
    said = _said(activations, chosen, position, model, head)
    profiles: dict[str, Depths] = {
        "separation": separation[rows],
        "spread": np.log(variance[0] / variance[1])[rows],
        "norm": np.array([_norm_ratio(activations, layer, position) for layer in chosen]),
        "along": np.array([_along_mean(activations, layer, position) for layer in chosen]),
        "turn": np.array([_cosine(inner, row, -1) for row in rows[:-1]]),
        "rank": np.array([_rank(activations, layer, position, names) for layer in chosen]),
        "lens": np.array([_divergence(*each) for each in said]),
    }
    found = {
        f"{name} at {depth:g}": float(value)
        for name, values in profiles.items()
        for depth, value in zip(DEPTHS, values, strict=False)
    }
    for name, odds in zip(("sure_harmful", "sure_harmless"), said[-1], strict=True):
        found[name] = float(odds.max(dim=-1).values.mean())
    found["crossing"] = float(np.argmax(separation >= separation.max() / 2)) / len(blocks)
    return found


def depth_row(depth: float, blocks: int) -> int:
    """Return the index of the block behind which a share ``depth`` of ``blocks`` is, rounded."""
    return max(0, int(np.floor(depth * blocks + 0.5)) - 1)


@cache
def features_code() -> str:
    """Return a hash of the code that features are made by: features of another are no reference."""
    digest = hashlib.sha256()
    for module in (__file__, layer_products.__file__, products.__file__):
        digest.update(Path(module).read_text(encoding="utf-8").encode())
    return digest.hexdigest()


def _categories(activations: Activations) -> list[str]:
    sides = (activations.harmful, activations.harmless)
    counts = [len(side.prompt_ids) for side in sides]
    if not all(side.kept for side in sides) or min(counts) < FEWEST:
        raise MeasurementError(
            f"an imprint is read from every activation of at least {FEWEST} prompts of each class; "
            f"there are {counts[0]} harmful and {counts[1]} harmless. Probe more prompts, with "
            'keep="prompts".'
        )
    labels = activations.harmful.categories
    names = sorted({str(label) for label in labels if label is not None})
    names = [name for name in names if labels.count(name) >= FEWEST]
    if len(names) < 2:
        raise MeasurementError(
            f"the rank of category directions needs two categories of {FEWEST} harmful prompts; "
            f"there are {len(names)}. Add a column 'category' to the prompts."
        )
    return names


def _variances(
    activations: Activations, blocks: Sequence[Layer], position: int
) -> Float64[np.ndarray, "two layer"]:
    """Return the summed variances of the coordinates of both classes (harmful first)."""
    column = activations.positions.index(position)
    found = np.empty((2, len(blocks)))
    for row, side in enumerate((activations.harmful, activations.harmless)):
        for place, layer in enumerate(blocks):
            moments = side.moments[layer]
            squares = float(moments.squared_deviation[column].sum())
            found[row, place] = max(squares / (moments.count - 1), np.finfo(float).tiny)
    return found


def _norm_ratio(activations: Activations, layer: Layer, position: int) -> float:
    column = activations.positions.index(position)
    lengths = [
        float(side.kept[layer][:, column].double().norm(dim=-1).mean())
        for side in (activations.harmful, activations.harmless)
    ]
    return float(np.log(lengths[0] / lengths[1]))


def _along_mean(activations: Activations, layer: Layer, position: int) -> float:
    column = activations.positions.index(position)
    delta = activations.difference(layer)[column]
    mean = activations.harmless.moments[layer].mean[column]
    return float(torch.nn.functional.cosine_similarity(delta, mean, dim=0))


def _cosine(inner: Float64[np.ndarray, "layer layer"], row: int, other: int) -> float:
    """Return the corrected cosine of two layers; 0 where one has no direction beyond noise."""
    squared = inner[row, row], inner[other, other]
    if min(squared) <= 0:
        return 0.0
    return float(np.clip(inner[row, other] / np.sqrt(squared[0] * squared[1]), -1, 1))


def _rank(activations: Activations, layer: Layer, position: int, names: list[str]) -> float:
    """Return ((Σ λ)² / Σ λ² − 1) / (K − 1) of the corrected products of K category directions."""
    samples = samples_at(activations, layer, position)
    groups = Groups.of(samples, activations.harmful.categories, names)
    inner = groups.corrected(np.ones(len(groups.gram)))
    values = np.maximum(np.linalg.eigvalsh(inner), 0.0)
    if not values.sum() > 0:
        return 0.0
    ratio = float(values.sum() ** 2 / (values**2).sum())
    return (ratio - 1) / (len(names) - 1)


@torch.no_grad()
def _said(
    activations: Activations,
    layers: Sequence[Layer],
    position: int,
    model: LoadedModel,
    head: Head,
) -> list[tuple[Float[Tensor, "harmful vocab"], Float[Tensor, "harmless vocab"]]]:
    """Return what the final norm and the head make of both classes at ``layers``."""
    column = activations.positions.index(position)
    path = model.anatomy.final_norm
    norm = None if path is None else model.module.get_submodule(path)

    def odds(kept: Mapping[Layer, Tensor], layer: Layer) -> Tensor:
        rows = kept[layer][:LENS_PROMPTS, column].to(head.weight)
        return torch.cat(
            [
                head.log_probabilities(each if norm is None else norm(each)).exp().double().cpu()
                for each in chunks(rows)
            ]
        )

    sides = (activations.harmful.kept, activations.harmless.kept)
    return [(odds(sides[0], layer), odds(sides[1], layer)) for layer in layers]


def _divergence(
    harmful: Float[Tensor, "harmful vocab"], harmless: Float[Tensor, "harmless vocab"]
) -> float:
    """Return the Jensen-Shannon divergence of the classes' mean distributions, in bits."""
    one, other = harmful.mean(dim=0), harmless.mean(dim=0)
    middle = (one + other) / 2
    return float(
        sum((torch.xlogy(each, each) - torch.xlogy(each, middle)).sum() for each in (one, other))
        / (2 * np.log(2))
    )
