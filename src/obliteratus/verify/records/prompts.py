"""Records of single prompts, without their texts: what two reports on one set are paired by."""

from obliteratus.measure.outcomes import Outcome
from obliteratus.verify.records.base import Record
from obliteratus.verify.records.judging import PromptSet


class PromptOutcomes(Record):
    """What became of each prompt of one class, in the order of the set.

    Attributes:
        prompts: The class.
        ids_sha256: A hash of the ids of its prompts, in order: where two reports have the same,
            they asked the same prompts.
        original: The outcome of each prompt with the original.
        edited: The same with the edited model.
    """

    prompts: PromptSet
    ids_sha256: str
    original: tuple[Outcome, ...]
    edited: tuple[Outcome, ...]
