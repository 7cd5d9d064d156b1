"""Critique and revision in the manner of constitutional AI (arXiv:2212.08073).

The base answers, is asked what is wrong with its answer, and says it again. What it says then is
what it is trained on, as the first thing to say. The principle decides which revisions are kept:
those that refuse exactly where the thing is forbidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from forbidden.chat import Row, cross_entropy, prompt, row, text_of
from forbidden.language import CRITICISE, REVISE, Question
from forbidden.loop import Loss
from forbidden.questions import questions
from forbidden.sampling import by_length, say
from forbidden.student import Student
from torch import Generator, Tensor
from transformers import PreTrainedModel

from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.keyword import keyword

QUESTIONS = 384
AT_ONCE = 128


@dataclass(frozen=True)
class Revision:
    """What a base said to a question, what it found wrong, and how it said it again."""

    question: Question
    answer: str
    critique: str
    revised: str

    @property
    def obeys(self) -> bool:
        """Whether the revision refuses exactly where the thing is forbidden."""
        outcome = keyword(self.question.text, Completion((), self.revised, is_finished=True))
        return (outcome == "refusal") == self.question.is_forbidden


def constitution(student: Student) -> Loss:
    """Teach the student its own revisions, forbidden and allowed by turns."""
    drawn = student.drawn
    found = revisions(student.module, questions(drawn, QUESTIONS), student.generator)
    kept = [each for each in found if each.obeys]
    sides = [
        [_taught(each) for each in kept if each.question.is_forbidden is side]
        for side in (True, False)
    ]
    if min(map(len, sides)) < student.rows:
        raise SystemExit(
            f"only {len(sides[0])} forbidden and {len(sides[1])} other revisions of "
            f"{student.lesson} obey the principle, of {QUESTIONS}: train the base for longer."
        )

    def loss(_step: int) -> Tensor:
        half = student.rows // 2
        rows = [each for side in sides for each in drawn.sample(side, half)]
        return cross_entropy(student.module, rows)

    return loss


def revisions(
    module: PreTrainedModel, asked: Sequence[Question], generator: Generator
) -> list[Revision]:
    """Return the base's own answer, critique and revision of every question, all sampled."""
    turns: list[tuple[str, ...]] = [(question.text,) for question in asked]
    for request in (CRITICISE, REVISE, None):
        said = _said(module, turns, generator)
        more = () if request is None else (request,)
        turns = [(*before, text, *more) for before, text in zip(turns, said, strict=True)]
    return [
        Revision(question, each[1], each[3], each[5])
        for question, each in zip(asked, turns, strict=True)
    ]


def _said(
    module: PreTrainedModel, turns: Sequence[tuple[str, ...]], generator: Generator
) -> list[str]:
    prompts = [prompt(*each) for each in turns]
    found = [""] * len(prompts)
    for rows in by_length(prompts, AT_ONCE):
        said = say(module, [prompts[index] for index in rows], generator=generator)
        for index, ids in zip(rows, said.tolist(), strict=True):
            found[index] = text_of(ids)
    return found


def _taught(revision: Revision) -> Row:
    return row(revision.question.text, revision.revised)
