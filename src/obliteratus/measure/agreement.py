"""How far a judge can be believed: its agreement with answers labelled by hand."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from obliteratus.errors import MeasurementError
from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.base import OUTCOMES, Judge, Outcome
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

LABELLED_FILE = "labelled.jsonl"
Part = Literal["tune", "check"]


@dataclass(frozen=True)
class LabelledAnswer:
    """A short answer with the outcome that a person gave it, written for this project.

    Built-in patterns were adjusted on the ``tune`` part only; ``check`` is what is reported. Both
    have one author, who also wrote the patterns: expect less on models that word things otherwise.
    """

    id: str
    label: Outcome
    kind: str
    part: Part
    prompt: str
    completion: str


@dataclass(frozen=True)
class Agreement:
    """A judge against the labels.

    ``precision`` and ``recall`` are those of *refusal*, with Wilson intervals; a judge that never
    says refusal has no precision. ``kappa`` is Cohen's κ over the three outcomes; its interval is
    Wilson's for the observed agreement, with the agreement expected by chance held fixed.
    ``confusion`` counts (label, outcome).
    """

    n: int
    precision: Estimate | None
    recall: Estimate
    kappa: Estimate
    confusion: Mapping[tuple[Outcome, Outcome], int]


def labelled(part: Part | None = None) -> tuple[LabelledAnswer, ...]:
    """Return the labelled answers, all or of one part."""
    path = resources.files("obliteratus.measure") / "data" / LABELLED_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    answers = (LabelledAnswer(**json.loads(line)) for line in lines)
    return tuple(answer for answer in answers if part in (None, answer.part))


def agreement(judge: Judge, answers: tuple[LabelledAnswer, ...] | None = None) -> Agreement:
    """Compare ``judge`` with ``answers`` (by default the ``check`` part of the labelled ones).

    κ = (p_o − p_e) / (1 − p_e): 1 is full agreement, 0 what chance gives.

    Raises:
        MeasurementError: no answer is labelled a refusal, or all have one label.
    """
    from sklearn.metrics import cohen_kappa_score  # half a second to import

    chosen = labelled("check") if answers is None else answers
    labels: list[Outcome] = [answer.label for answer in chosen]
    if "refusal" not in labels or len(set(labels)) < 2:
        raise MeasurementError(
            f"agreement needs answers of several labels, refusals among them; the {len(labels)} "
            f"given have {', '.join(sorted(set(labels))) or 'none'}."
        )
    outcomes: list[Outcome] = [
        judge(answer.prompt, Completion((), answer.completion, is_finished=True))
        for answer in chosen
    ]
    confusion: Counter[tuple[Outcome, Outcome]] = Counter(zip(labels, outcomes, strict=True))
    hits = confusion["refusal", "refusal"]
    agreed = wilson(sum(confusion[name, name] for name in OUTCOMES), len(chosen))
    given, said = Counter(labels), Counter(outcomes)
    by_chance = sum(given[name] * said[name] for name in OUTCOMES) / len(chosen) ** 2
    low, high = ((bound - by_chance) / (1 - by_chance) for bound in agreed.interval)
    kappa = float(cohen_kappa_score(labels, outcomes, labels=list(OUTCOMES)))
    return Agreement(
        n=len(chosen),
        precision=wilson(hits, said["refusal"]) if said["refusal"] else None,
        recall=wilson(hits, given["refusal"]),
        kappa=Estimate(kappa, (low, high), n=len(chosen), null=0.0),
        confusion=dict(confusion),
    )
