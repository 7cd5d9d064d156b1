"""How far a judge can be believed: its agreement with answers labelled by hand."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from obliteratus.errors import MeasurementError
from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.base import (
    LABELS,
    OUTCOMES,
    Exchange,
    Judge,
    Outcome,
    checked,
)
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

LABELLED_FILE = "labelled.jsonl"
SHOWN: Mapping[str, Outcome] = {
    "shown": "refusal",
    "not shown": "compliance",
    "degenerate": "degenerate",
}
"""What a label says of an answer where the behaviour is not refusal."""
Part = Literal["tune", "check"]
Origin = Literal["own", "blind"]
Side = Literal["refusal", "other"]


@dataclass(frozen=True)
class LabelledAnswer:
    """A short answer with the outcome that it was given by hand, written for this project.

    Built-in patterns were adjusted on the ``tune`` part only; ``check`` is what is reported. The
    answers of ``own`` origin are by the author of the patterns. The ``blind`` ones, in eighteen
    languages, are by another who had not seen them and looked for the unusual: what models say
    lies between the two.
    """

    id: str
    label: Outcome
    kind: str
    part: Part
    origin: Origin
    language: str
    prompt: str
    completion: str


@dataclass(frozen=True)
class Agreement:
    """A judge against the labels.

    ``precision`` and ``recall`` are those of *refusal*, or of what shows another behaviour, with
    Wilson intervals; a judge that never says it has no precision. ``kappa`` is Cohen's κ over the
    three outcomes; its interval is Wilson's for the observed agreement, with the agreement expected
    by chance held fixed.
    ``confusion`` counts (label, outcome); where the judge cannot tell it agrees with no label.
    """

    n: int
    precision: Estimate | None
    recall: Estimate
    kappa: Estimate
    confusion: Mapping[tuple[Outcome, Outcome], int]

    def counted(self, *, label: Side, said: Side) -> tuple[int, int]:
        """Return how many answers of ``label`` were ruled ``said``, and how many there are."""

        def is_side(outcome: Outcome, side: Side) -> bool:
            return (outcome == "refusal") == (side == "refusal")

        mine = {pair: n for pair, n in self.confusion.items() if is_side(pair[0], label)}
        return sum(n for pair, n in mine.items() if is_side(pair[1], said)), sum(mine.values())


def labelled(part: Part | None = None, origin: Origin | None = None) -> tuple[LabelledAnswer, ...]:
    """Return the labelled answers, all or of one part, of both origins or one."""
    path = resources.files("obliteratus.measure") / "data" / LABELLED_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    answers = (LabelledAnswer(**json.loads(line)) for line in lines)
    return tuple(
        answer
        for answer in answers
        if part in (None, answer.part) and origin in (None, answer.origin)
    )


def labelled_for(behaviour: str) -> tuple[LabelledAnswer, ...]:
    """Return answers labelled for a built-in behaviour other than refusal.

    They are short, in English and by the author of the rules, which were adjusted on the ``tune``
    part. Of the ``check`` part those of the kind ``later`` were written when the rules were
    finished, to find where these end; the others before there were any.
    """
    path = resources.files("obliteratus.measure") / "data" / f"labelled_{behaviour}.jsonl"
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return tuple(
        LabelledAnswer(
            id=row["id"],
            label=SHOWN[row["label"]],
            kind=row["kind"],
            part=row["part"],
            origin="own",
            language="en",
            prompt=row["prompt"],
            completion=row["completion"],
        )
        for row in rows
    )


def agreement(judge: Judge, answers: tuple[LabelledAnswer, ...] | None = None) -> Agreement:
    """Compare ``judge`` with ``answers`` (by default the ``check`` part of the labelled ones).

    κ = (p_o − p_e) / (1 − p_e): 1 is full agreement, 0 what chance gives. Judges of beginnings
    have no probabilities here and go by the text.

    Raises:
        MeasurementError: no answer is labelled a refusal, all have one label, or the judge fails.
    """
    from sklearn.metrics import cohen_kappa_score  # half a second to import

    chosen = labelled("check") if answers is None else answers
    labels: list[Outcome] = [answer.label for answer in chosen]
    if "refusal" not in labels or len(set(labels)) < 2:
        raise MeasurementError(
            f"agreement needs answers of several labels, refusals among them; the {len(labels)} "
            f"given have {', '.join(sorted(set(labels))) or 'none'}."
        )
    said = [Completion((), answer.completion, is_finished=True) for answer in chosen]
    asked = [Exchange(a.prompt, completion) for a, completion in zip(chosen, said, strict=True)]
    outcomes: list[Outcome] = [
        ruling.outcome for ruling in checked(judge, judge.read(asked), len(asked))
    ]
    confusion: Counter[tuple[Outcome, Outcome]] = Counter(zip(labels, outcomes, strict=True))
    hits = confusion["refusal", "refusal"]
    agreed = wilson(sum(confusion[name, name] for name in LABELS), len(chosen))
    given, ruled = Counter(labels), Counter(outcomes)
    by_chance = sum(given[name] * ruled[name] for name in OUTCOMES) / len(chosen) ** 2
    low, high = ((bound - by_chance) / (1 - by_chance) for bound in agreed.interval)
    kappa = float(cohen_kappa_score(labels, outcomes, labels=list(OUTCOMES)))
    return Agreement(
        n=len(chosen),
        precision=wilson(hits, ruled["refusal"]) if ruled["refusal"] else None,
        recall=wilson(hits, given["refusal"]),
        kappa=Estimate(kappa, (low, high), n=len(chosen), null=0.0),
        confusion=dict(confusion),
    )
