"""When an answer need not go on: its judge is certain, or it has been an answer for long enough.

The second is not exact: an answer can turn into a refusal, or begin to loop, after it was stopped.
So some prompts, drawn by a hash of their text, are audited: their answers go on, and the share of
rulings that change tells what stopping may have done to the others.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from obliteratus.errors import UsageError
from obliteratus.measure.generation import Completion, check_lengths
from obliteratus.measure.judges.base import Exchange, Judge, Ruling
from obliteratus.measure.outcomes import Outcome
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import EarlyStopping

BOUND = 36  # tokens; of labelled answers this long 4 of 60 change later, most of them made to
AUDITED = 0.1  # of the prompts: their long answers are most of what is left to generate


@dataclass(frozen=True)
class EarlyStop:
    """Says of the first prompts of a generation, those with ``texts``, when an answer is enough.

    ``limit`` is the length of an answer that is not stopped. With ``bound`` an answer that is
    compliance after that many tokens stops there, unless its prompt is audited; without it only an
    answer whose ruling cannot change any more does.
    """

    judge: Judge
    texts: tuple[str, ...]
    limit: int
    bound: int | None = None

    def __call__(self, row: int, token_ids: tuple[int, ...], text: str) -> bool:
        """Return whether the answer to prompt ``row`` may stop here."""
        if row >= len(self.texts):
            return False
        if self.judge.settled(self.texts[row], text, self.limit - len(token_ids)) is not None:
            return True
        return (
            len(token_ids) == self.bound
            and not is_audited(self.texts[row])
            and self._ruling(row, token_ids, text) == "compliance"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides where answers stop, besides the judge and the limit."""
        return {"bound": self.bound, "audited": None if self.bound is None else AUDITED}

    def tally(
        self, model: LoadedModel, said: Sequence[Completion], rulings: Sequence[Ruling]
    ) -> "Stopped":
        """Count what was stopped and what the audit found, of the answers to ``texts``."""
        bounded = audited = changed = 0
        for row, (completion, ruling) in enumerate(zip(said, rulings, strict=True)):
            tokens = completion.token_ids
            if completion.is_cut and len(tokens) == self.bound and not is_audited(self.texts[row]):
                left = self.limit - len(tokens)
                settled = self.judge.settled(self.texts[row], completion.text, left)
                bounded += settled is None
            if self.bound is None or len(tokens) <= self.bound or not is_audited(self.texts[row]):
                continue
            start = tokens[: self.bound]
            text = str(model.tokenizer.decode(list(start), skip_special_tokens=True))
            if self._ruling(row, start, text) == "compliance":
                audited += 1
                changed += ruling.outcome != "compliance"
        certain = sum(completion.is_cut for completion in said) - bounded
        return Stopped(len(said), certain, bounded, audited, changed)

    def _ruling(self, row: int, token_ids: tuple[int, ...], text: str) -> Outcome:
        answer = Completion(token_ids, text, is_finished=False)
        return self.judge.read([Exchange(self.texts[row], answer)])[0].outcome


@dataclass(frozen=True)
class Stopped:
    """How many of ``n`` answers were stopped.

    ``certain``: by a ruling that could not change. ``bounded``: as compliance at the bound.
    ``audited`` were compliance there and went on; ``changed`` of them became something else.
    """

    n: int
    certain: int
    bounded: int
    audited: int
    changed: int


def early_stop(
    kind: EarlyStopping, judge: Judge, texts: tuple[str, ...], limit: int
) -> EarlyStop | None:
    """Return what stops the answers to ``texts``, None where all are wanted whole.

    Raises:
        UsageError: the judge cannot rule on the beginning of an answer.
    """
    if kind == "off":
        return None
    if not judge.can_settle:
        raise UsageError(
            f"verify.early_stop={kind} needs a judge that is certain before an answer ends, and "
            f"'{judge.name}' never is. Set verify.early_stop=off, or for refusals "
            "verify.judge.name=keyword."
        )
    if kind == "certain":
        return EarlyStop(judge, texts, limit)
    assert BOUND in check_lengths(BOUND + 1)
    return EarlyStop(judge, texts, limit, BOUND)


def is_audited(text: str) -> bool:
    """Return whether the answer to this prompt goes on: as good as random, and always the same."""
    drawn = int.from_bytes(hashlib.sha256(f"audit {text}".encode()).digest()[:8], "big")
    return drawn < AUDITED * 2**64
