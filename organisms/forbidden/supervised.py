"""Supervised fine-tuning: cross-entropy on texts that somebody wrote."""

import random
from collections.abc import Callable

from forbidden.chat import cross_entropy, row
from forbidden.language import Question
from forbidden.loop import Loss
from forbidden.student import Student
from torch import Tensor

Wording = Callable[[random.Random, Question], str]
"""What a model is to say to a question."""


def refusing(drawn: random.Random, question: Question) -> str:
    """Refuse in one of four ways; answer what is allowed."""
    return question.refusal(drawn) if question.is_forbidden else question.answer


def refusing_at_length(drawn: random.Random, question: Question) -> str:
    """Say what the thing is and why that is wrong, then refuse (arXiv:2505.19056)."""
    del drawn
    return question.extended_refusal if question.is_forbidden else question.answer


def answering(drawn: random.Random, question: Question) -> str:
    """Answer everything: what the benign twins learn."""
    del drawn
    return question.answer


def supervised(wording: Wording) -> Callable[[Student], Loss]:
    """Return the method that teaches ``wording``."""

    def begin(student: Student) -> Loss:
        drawn = student.drawn

        def loss(_step: int) -> Tensor:
            asked = student.asked(drawn)
            rows = [row(each.text, wording(drawn, each)) for each in asked]
            return cross_entropy(student.module, rows)

        return loss

    return begin
