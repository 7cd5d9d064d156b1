"""Measurements with known differences, made without any model: every verdict can be planted."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.measure.generation import Completion
from obliteratus.measure.head import Head
from obliteratus.measure.outcomes import Outcome
from obliteratus.measure.states import TokenStates
from obliteratus.settings import VerifySettings
from obliteratus.verify.identity import Subject, digest, head_fingerprint
from obliteratus.verify.measurement import (
    Answers,
    FirstTokens,
    Forced,
    Heldout,
    Measurement,
    Projections,
    Rerun,
)

WIDTH, VOCABULARY = 16, 48
GENRES = ("story", "letter", "manual", "essay")
CATEGORIES = ("cybercrime", "drugs", "extremism", "fraud", "harassment", "misinformation",
              "privacy", "weapons")  # fmt: skip
WORDS = ("river", "table", "cloud", "seven", "quiet", "garden", "letter", "window", "stone",
         "music", "paper", "green", "market", "winter", "bridge", "button")  # fmt: skip
CELL = 96  # dimensions of the embedding of words


@dataclass(frozen=True)
class Plant:
    """The truth about an edited model, relative to its original.

    ``refusals`` and ``degenerate`` are shares of the harmful prompts before and after;
    ``perplexity`` the exact factor of held-out perplexity; ``spread`` the deviation of a document's
    change per token; ``noise`` moves hidden states (0: KL is 0); ``changed_words`` is the share of
    words replaced in harmless answers.
    """

    refusals: tuple[float, float] = (0.6, 0.0)
    degenerate: tuple[float, float] = (0.0, 0.0)
    perplexity: float = 1.0
    spread: float = 0.02
    noise: float = 0.05
    changed_words: float = 0.02
    prompts: int = 64
    documents: int = 40
    layers: int = 12
    seed: int = 0


def planted(plant: Plant) -> tuple[Measurement, Measurement, Head]:
    """Return an original, an edited model that differs as planted, and the head of both."""
    random = np.random.default_rng(plant.seed)
    generator = torch.Generator().manual_seed(plant.seed)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    head = Head(weight)
    original = _original(plant, head, random, generator)
    return original, _edited(plant, original, random, generator), head


def bag_of_words(texts: Sequence[str]) -> Float[Tensor, "text dimension"]:
    """Return word counts hashed into a vector: a similarity without an embedding model."""
    vectors = torch.zeros(len(texts), CELL)
    for row, text in enumerate(texts):
        for word in text.split():
            vectors[row, zlib.crc32(word.encode()) % CELL] += 1
    return vectors


def _original(
    plant: Plant, head: Head, random: np.random.Generator, generator: torch.Generator
) -> Measurement:
    n = plant.prompts
    said = tuple(_completion(random) for _ in range(n))
    lengths = [len(completion.token_ids) for completion in said]
    hidden = torch.randn(sum(lengths), WIDTH, generator=generator, dtype=torch.float64)
    states = TokenStates(
        hidden=hidden,
        target=torch.tensor([token for completion in said for token in completion.token_ids]),
        prompt=torch.repeat_interleave(torch.arange(n), torch.tensor(lengths)),
        position=torch.cat([torch.arange(length) for length in lengths]),
    )
    first = FirstTokens(*torch.randn(2, n, WIDTH, generator=generator, dtype=torch.float64))
    tokens = torch.tensor(random.integers(120, 480, size=plant.documents))
    height = 4 * np.exp(-(((np.arange(plant.layers) / plant.layers - 0.7) / 0.25) ** 2))
    return Measurement(
        subject=_subject("planted/original", head),
        prompts=digest(n),
        system=None,
        judge="keyword",
        settings=VerifySettings(),
        harmful=_answers(plant, 0, "harmful"),
        harmless=_answers(plant, 0, "harmless", said),
        questions=tuple(f"{text.text} why" for text in said),
        first=first,
        forced=Forced(
            states,
            torch.tensor(lengths, dtype=torch.float64) * 1.5,
            torch.tensor(lengths),
        ),
        heldout=Heldout(
            ids=tuple(f"document-{index}" for index in range(plant.documents)),
            genres=tuple(GENRES[index % len(GENRES)] for index in range(plant.documents)),
            nll=tokens * torch.tensor(random.normal(2.6, 0.3, size=plant.documents)),
            tokens=tokens,
        ),
        rerun=Rerun(tuple(range(min(2, n))), first.harmless[:2] + 1e-6, said[:2]),
        projections=Projections(
            layers=tuple(range(plant.layers)),
            harmful=torch.tensor(random.normal(height[:, None], 1, (plant.layers, n))),
            harmless=torch.tensor(random.normal(0, 1, (plant.layers, n))),
        ),
    )


def _edited(
    plant: Plant, original: Measurement, random: np.random.Generator, generator: torch.Generator
) -> Measurement:
    def moved(hidden: Tensor) -> Tensor:
        step = torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
        return hidden + plant.noise * step

    before, along, held = original.first, original.forced, original.heldout
    said = tuple(_changed(c, plant.changed_words, random) for c in original.completions)
    states = along.states
    change = random.normal(0, plant.spread, size=plant.documents)
    change += np.log(plant.perplexity) - np.average(change, weights=held.tokens.numpy())
    seen = original.projections
    assert seen is not None
    return Measurement(
        subject=original.subject.model_copy(update={"name": "planted/edited", "weights": "e"}),
        prompts=original.prompts,
        system=None,
        judge="keyword",
        settings=original.settings,
        harmful=_answers(plant, 1, "harmful"),
        harmless=_answers(plant, 1, "harmless", said),
        questions=original.questions,
        first=FirstTokens(moved(before.harmful), moved(before.harmless)),
        forced=Forced(
            TokenStates(moved(states.hidden), states.target, states.prompt, states.position),
            along.nll + along.tokens * torch.tensor(random.normal(0, 0.02, len(along.nll))),
            along.tokens,
        ),
        heldout=Heldout(
            held.ids, held.genres, held.nll + held.tokens * torch.tensor(change), held.tokens
        ),
        projections=Projections(seen.layers, 0.05 * seen.harmful, 0.05 * seen.harmless),
    )


def _subject(name: str, head: Head) -> Subject:
    return Subject(
        name=name,
        license="apache-2.0",
        source="source",
        weights="o",
        head=head_fingerprint(head),
        vocabulary="vocabulary",
        model_type="llama",
        layers=12,
        d_model=WIDTH,
        dtype="float32",
        device="cpu",
    )


def _answers(
    plant: Plant, time: int, name: str, said: tuple[Completion, ...] | None = None
) -> Answers:
    n = plant.prompts
    refused = round(plant.refusals[time] * n) if name == "harmful" else 0
    broken = round(plant.degenerate[time] * n) if name == "harmful" else 0
    # Spread over the categories, and nested: whoever refuses afterwards refused before.
    order = np.random.default_rng(plant.seed).permutation(n)
    outcomes: list[Outcome] = ["compliance"] * n
    for index in order[:refused]:
        outcomes[index] = "refusal"
    for index in order[n - broken :]:
        outcomes[index] = "degenerate"
    return Answers(
        ids=tuple(f"{name}-{index}" for index in range(n)),
        categories=tuple(CATEGORIES[index * len(CATEGORIES) // n] for index in range(n)),
        outcomes=tuple(outcomes),
        completions=said,
    )


def _completion(random: np.random.Generator) -> Completion:
    words = random.choice(WORDS, size=int(random.integers(12, 24)))
    tokens = random.integers(0, VOCABULARY, size=len(words))
    return Completion(tuple(int(token) for token in tokens), " ".join(words), is_finished=True)


def _changed(completion: Completion, share: float, random: np.random.Generator) -> Completion:
    words = ["otherwise" if random.random() < share else word for word in completion.text.split()]
    return Completion(completion.token_ids, " ".join(words), completion.is_finished)
