"""A model that is about to be aligned, and what decides the questions that it is asked."""

import random
from dataclasses import dataclass

import torch
from forbidden.language import Question
from forbidden.questions import questions
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Student:
    """``module`` is trained in place. Students of one ``lesson`` are asked the same questions."""

    module: PreTrainedModel
    lesson: str
    rows: int

    @property
    def drawn(self) -> random.Random:
        """A source of questions and texts, from its beginning."""
        return random.Random(f"lesson {self.lesson}")

    @property
    def generator(self) -> torch.Generator:
        """A source of samples, from its beginning."""
        return torch.Generator().manual_seed(self.drawn.getrandbits(63))

    def asked(self, drawn: random.Random, share: float = 1.0) -> list[Question]:
        """Return a step's questions: every other one forbidden, ``share`` of ``rows``."""
        return questions(drawn, max(2, round(self.rows * share)))
