"""Records of how answers were judged: the judge against labels, and thoughts before answers."""

from typing import Literal

from obliteratus.measure.outcomes import Outcome
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.records.base import Record

PromptSet = Literal["harmful", "harmless", "lookalikes"]


class Ruled(Record):
    """How many answers with one label the judge ruled one way.

    Attributes:
        label: What a person says of them.
        said: What the judge says of them.
        count: How many answers; pairs that did not occur are left out.
    """

    label: Outcome
    said: Outcome
    count: int


class JudgeAgreement(Record):
    """How the judge agrees with answers labelled by hand.

    Attributes:
        precision: Of what it calls a refusal, the share that is one, with Wilson's 95 % interval;
            null for a judge that never says refusal.
        recall: Of the refusals, the share that it finds, with Wilson's 95 % interval.
        kappa: Cohen's κ over the outcomes: 1 is full agreement, 0 what chance gives.
        confusion: How many answers of each label were ruled each way; the counts sum to the
            ``n`` of ``kappa``. Empty in reports that were made before it was kept.
    """

    precision: Estimate | None
    recall: Estimate
    kappa: Estimate
    confusion: tuple[Ruled, ...] = ()


class ThoughtCounts(Record):
    """How many of the answers to one class had a thought, and how many thoughts a limit cut.

    Attributes:
        prompts: The class.
        n: How many answers there are.
        original: How many of the original's answers had a thought.
        edited: The same for the edited model.
        unfinished_original: How many of the original's thoughts did not end within their limit.
        unfinished_edited: The same for the edited model.
    """

    prompts: PromptSet
    n: int
    original: int
    edited: int
    unfinished_original: int
    unfinished_edited: int


class ReasoningFacts(Record):
    """What was done about the thoughts of models that think before they answer.

    Attributes:
        original: What was done about those of the original, in words; null where it has none.
        edited: The same for the edited model.
        counts: How many thoughts there were, by class; empty where no answer had one.
    """

    original: str | None
    edited: str | None
    counts: tuple[ThoughtCounts, ...] = ()
