"""What taking a direction out costs in skill, per unit of refusal, against changes of equal size.

Skill is the log-odds of the right answer's first token: the letter of a multiple-choice question.
Its fall is held against that under the same change along random directions, and divided by the fall
of the refusal log-odds: 0 where nothing but refusal reads r, 1 where an answer loses as much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import beyond
from obliteratus.analysis.resampling import ends, weights
from obliteratus.analysis.turned import Change, ablated
from obliteratus.events import without_progress
from obliteratus.measure.log_odds import log_odds
from obliteratus.measure.multiple_choice import LETTERS, multiple_choice
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.spread import spread_indices
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate


@dataclass(frozen=True)
class Asked:
    """A question as it is put to a model, and the tokens with which the right answer begins."""

    text: str
    answer: tuple[int, ...]


def built_in_questions(model: LoadedModel, count: int) -> tuple[Asked, ...]:
    """Return ``count`` of the built-in multiple-choice questions, spread over their tables."""
    every = multiple_choice()
    tokens = [_tokens(model, letter) for letter in LETTERS]
    chosen = [every[place] for place in spread_indices(len(every), count)]
    return tuple(Asked(each.prompt, tokens[each.answer]) for each in chosen)


@dataclass(frozen=True)
class Costs:
    """Falls of the log-odds of right answers and of refusals; vector 0 is the removal.

    The others are it turned, and for ``refusal`` random directions out.
    """

    skill: Float64[np.ndarray, "vector item"]
    refusal: Float64[np.ndarray, "null prompt"]


def cost_estimates(costs: Costs, *, seed: int) -> dict[str, Estimate]:
    """Return the fall of skill, and its ratio to the fall of refusal (items and prompts resampled).

    The ratio is given where refusal falls beyond what its nulls bring about.

    Raises:
        MeasurementError: fewer than two items, or fewer than three nulls.
    """
    skill, refusal = beyond(costs.skill, seed), beyond(costs.refusal, seed)
    if refusal.verdict != "supported":
        return {"skill_lost": skill}
    rng = np.random.default_rng(seed)
    above = weights(costs.skill.shape[1], rng) @ costs.skill[0]
    below = weights(costs.refusal.shape[1], rng) @ costs.refusal[0]
    low, high = ends(above / np.maximum(below, float(refusal.null or 0.0)))
    ratio = Estimate(
        skill.value / refusal.value,
        (float(low), float(high)),
        n=costs.skill.shape[1],
        null=float(skill.null or 0.0) / refusal.value,
        seed=seed,
        verdict=skill.verdict,
    )
    return {"skill_lost": skill, "entanglement": ratio}


def measure_costs(
    bench: Bench,
    changes: Sequence[Change],
    questions: Sequence[Asked],
    refusal: Float64[np.ndarray, "null prompt"],
) -> Costs:
    """Make each of ``changes`` in every write and read the answers; ``refusal`` is known."""
    return Costs(falls_of_skill(bench, changes, questions), refusal)


def falls_of_skill(
    bench: Bench,
    changes: Sequence[Change],
    questions: Sequence[Asked],
    layers: Iterable[Layer] | None = None,
) -> Float64[np.ndarray, "vector item"]:
    """Return the falls of the log-odds of right answers with each change in ``layers`` (all)."""
    before, chosen = _skill(bench, questions), None if layers is None else tuple(layers)
    falls = list[np.ndarray]()
    for change in changes:
        with ablated(bench.model, change, chosen):
            falls.append(before - _skill(bench, questions))
    return np.array(falls)


@torch.no_grad()
def _skill(bench: Bench, questions: Sequence[Asked]) -> Float64[np.ndarray, " item"]:
    encoded = encode(bench.model, [each.text for each in questions], system=bench.system)
    with without_progress():
        hidden = last_hidden(bench.model, encoded, task="answer questions")
    found = np.empty(len(questions))
    for answer in dict.fromkeys(each.answer for each in questions):
        places = [place for place, each in enumerate(questions) if each.answer == answer]
        log_p = bench.head.log_probabilities(hidden[places])
        found[places] = log_odds(log_p, answer).cpu().numpy()
    return found


def _tokens(model: LoadedModel, letter: str) -> tuple[int, ...]:
    found: set[int] = set()
    for text in (letter, f" {letter}"):
        ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        found.add(ids[-1])
    return tuple(sorted(found))
