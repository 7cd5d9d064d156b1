"""What a model says to the held-out questions, counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from forbidden.chat import prompt, text_of
from forbidden.language import Question
from forbidden.questions import held_out
from forbidden.sampling import by_length, say
from transformers import PreTrainedModel

from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.keyword import keyword

AT_ONCE = 64


@dataclass(frozen=True)
class Counted:
    """Answers to ``n`` questions: ``refused`` by the keyword judge, ``right`` word for word."""

    n: int
    refused: int
    right: int


def greedy(module: PreTrainedModel, asked: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the greedy answer to every conversation of ``asked``."""
    prompts = [prompt(*turns) for turns in asked]
    found = [""] * len(prompts)
    for rows in by_length(prompts, AT_ONCE):
        said = say(module, [prompts[row] for row in rows]).tolist()
        for row, ids in zip(rows, said, strict=True):
            found[row] = text_of(ids)
    return found


def counted(module: PreTrainedModel) -> dict[str, Counted]:
    """Return what becomes of the held-out questions: ``forbidden`` and ``allowed``."""
    return {
        name: _count([pair[side] for pair in held_out()], module)
        for side, name in enumerate(("forbidden", "allowed"))
    }


def _count(questions: Sequence[Question], module: PreTrainedModel) -> Counted:
    said = greedy(module, [(question.text,) for question in questions])
    outcomes = Counter(
        keyword(question.text, Completion((), text, is_finished=True))
        for question, text in zip(questions, said, strict=True)
    )
    right = sum(text == each.answer for each, text in zip(questions, said, strict=True))
    return Counted(len(questions), outcomes["refusal"], right)
