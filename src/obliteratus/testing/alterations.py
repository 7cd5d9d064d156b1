"""The table of alterations: what ``detect`` is to find, and what it is to pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from obliteratus.testing.altered import (
    Alter,
    adapted,
    edited,
    finetuned,
    identical,
    in_turn,
    merged,
    redrawn,
    requantised,
    rescaled,
    rounded,
    scaled,
    steered,
)

Expected = bool | None
"""Found, missed, or None: that depends on the model."""
UNEQUAL = {"directions": (1.0, 0.8, 1.2)}
ONE_MATRIX = {"components": {"attention": 0.0, "embedding": 0.0}}


@dataclass(frozen=True)
class Alteration:
    """``make``, whether it is an edit, and whether that is found with the base and ``alone``.

    What is no edit may be called one where it does what an edit does: it scales a column that alone
    writes along some direction, or leaves a direction along which a model never wrote.
    """

    make: Alter
    is_edit: bool
    with_base: Expected
    alone: Expected


def _edit(*, with_base: Expected = True, alone: Expected = True, **settings: Any) -> Alteration:
    return Alteration(partial(edited, **settings), True, with_base, alone)


def _then(
    later: Alter, *, with_base: Expected = True, alone: Expected, **settings: Any
) -> Alteration:
    steps = (partial(edited, **settings), later)
    return Alteration(partial(in_turn, steps=steps), True, with_base, alone)


def _other(make: Alter, *, with_base: Expected = False, alone: Expected = False) -> Alteration:
    return Alteration(make, False, with_base, alone)


ALTERATIONS: Mapping[str, Alteration] = MappingProxyType(
    {
        "rank 1 (basic)": _edit(),
        "rank 3": _edit(rank=3),
        "rank 3, column norms kept (advanced)": _edit(rank=3, norm="column"),
        "rank 3, strengths 1, 0.8, 1.2": _edit(rank=3, strengths=UNEQUAL),
        "one direction per block": _edit(per_layer=True),
        "blocks 1 and 2 only": _edit(layers="1-2"),
        "Frobenius norm kept": _edit(norm="frobenius"),
        "column norms kept": _edit(norm="column"),
        "row norms kept": _edit(norm="row"),
        "orthogonal before a norm": _edit(post_norm="orthogonal"),
        "filters (oblique)": _edit(oblique=True, with_base=None),
        "saved in bfloat16": _edit(dtype=torch.bfloat16),
        "requantised to int8": _edit(storage="int8"),
        "requantised to 4 bits": _edit(storage="4bit", alone=None),
        "requantised to 3 bits": _edit(storage="3bit", with_base=None, alone=None),
        "strength 0.25": _edit(strength=0.25, alone=False),
        "strength 0.5": _edit(strength=0.5, alone=False),
        "strength 0.75": _edit(strength=0.75, alone=None),
        "strength 1.25": _edit(strength=1.25, alone=None),
        "strength 2 (inverted)": _edit(strength=2.0, alone=False),
        "strength -0.25 (amplified)": _edit(strength=-0.25, alone=False),
        "strength 0.25, int8": _edit(strength=0.25, storage="int8", alone=False),
        "strength 0.25, 4 bits": _edit(strength=0.25, storage="4bit", with_base=False, alone=False),
        "filters, strength 0.5": _edit(oblique=True, strength=0.5, with_base=None, alone=False),
        "one matrix": _edit(layers="1", strengths=ONE_MATRIX, with_base=False, alone=None),
        "rank 1, then LoRA": _then(adapted, alone=None),
        "rank 1, then a full fine-tune": _then(finetuned, with_base=None, alone=None),
        "strength 0.5, then LoRA": _then(adapted, strength=0.5, with_base=None, alone=False),
        "identical": _other(identical),
        "rounded to bfloat16": _other(rounded),
        "packed in int8": _other(partial(requantised, storage="int8")),
        "packed in 4 bits": _other(partial(requantised, storage="4bit")),
        "packed in 3 bits": _other(partial(requantised, storage="3bit")),
        "scaled by 0.9": _other(scaled),
        "rows rescaled": _other(partial(rescaled, side="rows")),
        "columns rescaled": _other(partial(rescaled, side="columns"), with_base=None),
        "LoRA, rank 4": _other(adapted),
        "LoRA, rank 1": _other(partial(adapted, rank=1), alone=None),
        "LoRA and rows rescaled": _other(
            partial(in_turn, steps=(adapted, partial(rescaled, side="rows")))
        ),
        "random rank 1 in each matrix": _other(partial(steered, is_shared=False), alone=None),
        "one left vector, own right sides": _other(steered),
        "full fine-tune": _other(finetuned),
        "merge with a fine-tune": _other(merged),
        "drawn anew": _other(redrawn),
    }
)
"""Name -> alteration, edits first."""
