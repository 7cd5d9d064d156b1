"""Directions of a later pass beside those that are removed already."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.errors import DirectionError
from obliteratus.operator.bases import orthonormalise
from obliteratus.shapes import Layer

SMALLEST_PART = 1e-3
"""A direction that keeps less than this share of its length outside the earlier ones is theirs."""


def orthogonal_to(directions: Directions, earlier: Sequence[Directions]) -> Directions:
    """Return the part of ``directions`` outside what ``earlier`` passes removed, layer by layer.

    Removing r₂ after r₁ writes −(r₁·r₂) r₂ᵀW back along r₁ unless both are orthogonal. Rows within
    the earlier space are dropped with their strengths, and layers of which nothing is left.

    Raises:
        DirectionError: a pass has filters; its edit leaves the space of its filters, not of its
            rows, so being orthogonal to the rows does not keep a later pass out of it.
    """
    if any(each.filters for each in (directions, *earlier)):
        raise DirectionError(
            f"another pass cannot follow an oblique edit ('{directions.method}'): it would write "
            "back what that edit removed. Set edit.passes=1."
        )
    basis: dict[Layer, Float64[Tensor, "rank d_model"]] = {}
    numbers: dict[Layer, list[int]] = {}
    for layer, rows in directions.basis.items():
        kept: list[Tensor] = []
        taken = [each.basis[layer] for each in earlier if layer in each.basis]
        for number, row in enumerate(rows):
            # twice: one projection in floating point leaves a part of the order of its rounding
            rest = _outside(_outside(row, [*taken, *kept]), [*taken, *kept])
            if float(rest.norm()) > SMALLEST_PART * float(row.norm()):
                kept.append((rest / rest.norm())[None])
                numbers.setdefault(layer, []).append(number)
        if kept:
            basis[layer] = orthonormalise(torch.cat(kept))
    strengths = directions.strengths
    if strengths is not None:
        strengths = {
            layer: {part: values[kept] for part, values in strengths[layer].items()}
            for layer, kept in numbers.items()
        }
    return replace(directions, basis=basis, strengths=strengths)


def _outside(row: Tensor, spaces: Sequence[Tensor]) -> Tensor:
    for space in spaces:
        row = row - (space @ row) @ space
    return row
