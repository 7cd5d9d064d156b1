"""Transformers with a refusal circuit written by hand, and the truth about it.

The model is an ordinary one: the whole program runs on it, and every analysis of it has an exact
answer. See docs/design/ground-truth.md for what is planted and how exact the predictions are.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.describe import describe
from obliteratus.models.loaded import LoadedModel, ModelSource
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.shapes import Layer
from obliteratus.testing.planted_circuit import Circuit, Role, Trace
from obliteratus.testing.planted_design import VARIANTS, Design
from obliteratus.testing.planted_frame import Frame, frame
from obliteratus.testing.planted_prompts import planted_prompts, write_prompts
from obliteratus.testing.planted_refusal import (
    LOGIT,
    READ_LAYER,
    REFUSAL,
    TRIGGER,
    WRITE_LAYER,
    refusal_circuit,
    refusal_directions,
)
from obliteratus.testing.planted_vocabulary import (
    CHAT_TEMPLATE,
    HARM,
    ITEMS,
    REFUSES,
    TRIGGERS,
    planted_tokenizer,
    token_id,
)
from obliteratus.testing.planted_weights import Built, build


@dataclass(frozen=True)
class Truth:
    """What was planted, and where.

    ``refusal`` are unit rows, +r towards refusal: one for all, or row i for category i of
    ``categories``, and then not orthogonal. They are written, ``length`` long, behind block
    ``write_layer`` and read in block ``read_layer``. ``heads`` is what a head copies (``harm``,
    ``trigger``, ``capability``) -> (layer, head), and ``copied`` what it writes at the last token
    for each category. ``columns`` is the role of MLP columns -> (layer, column); in a mixture the
    writers' are those of ``experts``, all others those of every expert. ``repair`` and
    ``entanglement`` are shares of a swing of log-odds. ``backup`` is what the second path writes,
    ``inert`` what harm writes and nothing reads, ``sink`` the large coordinate, ``constant`` the
    direction that all tokens have in common; each is None where it is not planted.
    """

    design: Design
    refusal: Float64[Tensor, "rank d_model"]
    categories: tuple[str, ...]
    length: float
    write_layer: int
    read_layer: int
    heads: Mapping[str, tuple[int, int]]
    copied: Mapping[str, Float64[Tensor, " d_model"]]
    columns: Mapping[Role, tuple[tuple[int, int], ...]]
    experts: tuple[int, ...]
    constant: Float64[Tensor, " d_model"]
    backup: Float64[Tensor, " d_model"] | None
    inert: Float64[Tensor, " d_model"] | None
    sink: int | None

    @property
    def repair(self) -> float:
        """The share of the swing that comes back when r is removed."""
        return self.design.repair

    @property
    def entanglement(self) -> float:
        """The share of a capability answer's swing that is lost when r is removed."""
        return self.design.entanglement

    @property
    def basis(self) -> Float64[Tensor, "rank d_model"]:
        """Orthonormal rows that span ``refusal``; the first is its mean direction."""
        mean = self.refusal.mean(0, keepdim=True)
        ranked = torch.cat([mean, self.refusal])[: len(self.refusal)]
        rows = torch.linalg.qr(ranked.T).Q.T
        return rows * torch.sign((rows * ranked).sum(1, keepdim=True))

    def direction_of(self, category: str) -> Float64[Tensor, " d_model"]:
        """Return r of ``category``, which may be that of all."""
        return self.refusal[self.categories.index(category) if len(self.refusal) > 1 else 0]


@dataclass(frozen=True)
class PlantedTransformer:
    """A model, the truth about it, and what its circuit predicts."""

    model: LoadedModel
    truth: Truth
    circuit: Circuit
    codes: Float64[Tensor, "vocab d_model"]

    def prompts(self, n: int = 64, *, seed: int = 0) -> ContrastSet:
        """Return prompts with trigger words as the variant has them."""
        return planted_prompts(n, seed=seed, triggers=self.truth.design.triggers)

    @property
    def refusal_tokens(self) -> RefusalTokens:
        """The one token that opens its refusals."""
        return RefusalTokens((self.token(REFUSES),), (REFUSES,))

    def token(self, text: str) -> int:
        """Return the id of a word, given with its space where it has one."""
        tokenizer = self.model.tokenizer
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        return token_id(tokenizer, text)

    def predicted(
        self,
        prompt: str,
        *,
        token: str = REFUSES,
        removed: Float64[Tensor, "rank d_model"] | None = None,
        strength: float = 1.0,
        added: Mapping[Layer, Float64[Tensor, " d_model"]] | None = None,
        without: Collection[Role] = (),
    ) -> float:
        """Return the log-odds of ``token`` as the answer's first, from the circuit alone.

        ``removed`` are orthonormal rows of which ``strength`` is taken out of all writes, ``added``
        are vectors behind layers, ``without`` roles whose columns are silent. Words bring no noise.
        """
        trace = self.trace(prompt, removed=removed, strength=strength, added=added, without=without)
        logits = LOGIT * self.codes @ trace.read
        inside = logits[self.token(token)]
        rest = torch.cat([logits[: self.token(token)], logits[self.token(token) + 1 :]])
        return float(inside - rest.logsumexp(0))

    def trace(
        self,
        prompt: str,
        *,
        removed: Float64[Tensor, "rank d_model"] | None = None,
        strength: float = 1.0,
        added: Mapping[Layer, Float64[Tensor, " d_model"]] | None = None,
        without: Collection[Role] = (),
    ) -> Trace:
        """Return the idealised stream at the last token of ``prompt``; see :meth:`predicted`."""
        silent = [unit for unit in self.circuit.units if unit.role in without]
        return self.circuit.at_last_token(
            features(prompt), removed=removed, strength=strength, added=added, without=silent
        )


def planted(
    variant: str = "linear", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PlantedTransformer:
    """Return the planted transformer ``variant``, a key of :data:`VARIANTS`, drawn by ``seed``.

    ``changes`` replace fields of its :class:`Design`, such as ``effect``, ``noise`` or ``repair``.

    Raises:
        UsageError: there is no such variant, or its design contradicts itself.
    """
    if variant not in VARIANTS:
        raise UsageError(f"no planted variant '{variant}'.{did_you_mean(variant, VARIANTS)}")
    design = replace(VARIANTS[variant], **changes)
    tokenizer = planted_tokenizer()
    axes = frame(seed, has_sink=design.has_sink, is_centred=design.architecture == "stablelm")
    activation = ACT2FN["gelu_pytorch_tanh" if design.architecture == "gemma2" else "silu"]
    circuit = refusal_circuit(axes, design, activation)
    built = build(axes, design, circuit, tokenizer, seed=seed, dtype=dtype)
    name = f"planted-{variant}-{seed}-{design}-{dtype}"
    model = LoadedModel(
        module=built.module,
        tokenizer=tokenizer,
        anatomy=describe(built.module),
        source=ModelSource(
            asked=f"planted-{variant}-{seed}",
            kind="folder",
            identifier=f"/nonexistent/planted-{variant}-{seed}",
            fingerprint=hashlib.sha256(name.encode()).hexdigest(),
        ),
        dtype=dtype,
        chat_template_sha256=hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
    )
    return PlantedTransformer(model, _truth(axes, design, built), built.circuit, built.codes)


def planted_folder(path: Path, plant: PlantedTransformer, *, prompts: int = 48) -> Path:
    """Save the model of ``plant`` at ``path`` as a transformers folder, with prompts for it.

    ``harmful.jsonl`` and ``harmless.jsonl`` in it give ``prompts`` pairs.
    """
    plant.model.module.save_pretrained(path)
    plant.model.tokenizer.save_pretrained(path)
    write_prompts(path, plant.prompts(prompts))
    return path


def features(prompt: str) -> tuple[str, ...]:
    """Return what the words of ``prompt`` carry: categories of harm, answers, a trigger."""
    words = set(prompt.split())
    carriers = {**HARM, **ITEMS, TRIGGER: TRIGGERS}
    return tuple(name for name, carrying in carriers.items() if words.intersection(carrying))


def _truth(axes: Frame, design: Design, built: Built) -> Truth:
    columns: dict[Role, list[tuple[int, int]]] = {}
    for unit, column in zip(built.circuit.units, built.columns, strict=True):
        columns.setdefault(unit.role, []).append((unit.layer, column))
    return Truth(
        design=design,
        refusal=refusal_directions(axes, design),
        categories=tuple(HARM),
        length=REFUSAL * design.effect,
        write_layer=WRITE_LAYER,
        read_layer=READ_LAYER,
        heads=built.heads,
        copied=axes.copied,
        columns={role: tuple(places) for role, places in columns.items()},
        experts=built.experts,
        constant=axes.constant,
        backup=axes.backup if design.repair else None,
        inert=axes.inert if design.inert else None,
        sink=axes.sink,
    )
