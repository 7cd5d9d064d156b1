"""Whether two models are made from one base, so that their streams have the same coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from obliteratus.models.loaded import LoadedModel

RELATED = 0.5
"""Cosine of all weights: fine-tuning leaves it above 0.9, and models trained apart have about 0."""


@dataclass(frozen=True)
class Kinship:
    """What two models have in common.

    ``embedding`` and ``blocks`` are the cosines between their weights, of every matrix less the
    mean of its rows (None where shapes differ or weights are packed).
    """

    same_vocabulary: bool
    same_width: bool
    same_depth: bool
    embedding: float | None
    blocks: float | None

    @property
    def is_same_base(self) -> bool:
        """Whether a direction of one means the same in the other, without a map."""
        cosines = [each for each in (self.embedding, self.blocks) if each is not None]
        alike = self.same_vocabulary and self.same_width and self.same_depth
        return alike and bool(cosines) and min(cosines) > RELATED

    @property
    def words(self) -> str:
        """Why they count as one base or not."""
        pairs = [("vocabulary", self.same_vocabulary), ("width", self.same_width),
                 ("number of layers", self.same_depth)]  # fmt: skip
        other = [name for name, same in pairs if not same]
        if other:
            return f"different {' and '.join(other)}"
        if self.embedding is None and self.blocks is None:
            return "no weights that could be compared"
        each = [
            f"{name} {value:.2f}"
            for name, value in (("embedding", self.embedding), ("blocks", self.blocks))
            if value is not None
        ]
        return f"same vocabulary, width and depth; cosine of the weights: {', '.join(each)}"

    def as_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            "same_base": self.is_same_base,
            "why": self.words,
            "embedding": self.embedding,
            "blocks": self.blocks,
        }


@torch.no_grad()
def kinship(one: LoadedModel, other: LoadedModel) -> Kinship:
    """Compare vocabularies, shapes and weights, reading every matrix of both once."""
    first, second = one.module.get_input_embeddings(), other.module.get_input_embeddings()
    inside = tuple(f"{path}." for path in one.anatomy.blocks)
    theirs = dict(other.module.named_parameters())
    pairs = [
        (weight, theirs[name])
        for name, weight in one.module.named_parameters()
        if name.startswith(inside) and name in theirs and weight.ndim > 1
    ]
    return Kinship(
        same_vocabulary=one.tokenizer.get_vocab() == other.tokenizer.get_vocab(),
        same_width=one.anatomy.d_model == other.anatomy.d_model,
        same_depth=one.anatomy.n_layers == other.anatomy.n_layers,
        embedding=_cosine([(_weight(first), _weight(second))]),
        blocks=_cosine(pairs),
    )


def _weight(module: torch.nn.Module) -> Tensor:
    return module.get_parameter("weight")


def _cosine(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Return Σ⟨W, W'⟩ / √(Σ‖W‖² Σ‖W'‖²) over pairs of one shape, None where there is none."""
    inner = lengths = others = 0.0
    for weight, theirs in pairs:
        is_plain = weight.is_floating_point() and theirs.is_floating_point()
        if weight.shape != theirs.shape or not is_plain or weight.is_meta or theirs.is_meta:
            continue
        first, second = (_centred(each).cpu() for each in (weight, theirs))
        inner += float((first * second).sum())
        lengths += float((first * first).sum())
        others += float((second * second).sum())
    return inner / (lengths * others) ** 0.5 if lengths > 0 and others > 0 else None


def _centred(weight: Tensor) -> Tensor:
    matrix = weight.detach().float()
    return matrix - matrix.mean(dim=-2, keepdim=True)
