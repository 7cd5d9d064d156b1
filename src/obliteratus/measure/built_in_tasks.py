"""The tasks that need no other package: generated items, put to the model as a user would."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from obliteratus.measure.capability import ItemScores
from obliteratus.measure.generation import generate
from obliteratus.measure.multiple_choice import Question, chosen, multiple_choice
from obliteratus.measure.word_problems import WordProblem, is_right, word_problems
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.spread import spread_indices

SOURCE = "built in"
METRIC = "right"
ALL_PROBLEMS = 200  # they are generated without end: what "all" means for them
NEW_TOKENS = 192  # enough for four steps in words; a longer answer is cut off and mostly wrong


@dataclass(frozen=True)
class MultipleChoice:
    """Questions with four choices, answered by the most probable letter; ``items`` 0 is all."""

    items: int
    name: str = field(default="multiple_choice", init=False)

    def identity(self, model: LoadedModel, system: str | None) -> dict[str, Any]:
        """Return the questions, as tokens and as text."""
        return _identity(model, system, self._questions)

    def score(self, model: LoadedModel, system: str | None, *, progress: str) -> ItemScores:
        """Return which questions ``model`` answers with the right letter.

        Raises:
            MeasurementError: see :func:`obliteratus.measure.multiple_choice.chosen`.
        """
        choices = chosen(model, self._questions, system=system, task=progress)
        right = [each.answer == at for each, at in zip(self._questions, choices, strict=True)]
        return _scores(self.name, self._questions, right)

    @property
    def _questions(self) -> tuple[Question, ...]:
        every = multiple_choice()
        return tuple(every[i] for i in spread_indices(len(every), self.items or len(every)))


@dataclass(frozen=True)
class WordProblems:
    """Arithmetic in words, worked out in at most ``new_tokens`` tokens; ``items`` 0 is 200."""

    items: int
    new_tokens: int = NEW_TOKENS
    name: str = field(default="word_problems", init=False)

    def identity(self, model: LoadedModel, system: str | None) -> dict[str, Any]:
        """Return the problems, as tokens and as text, and how long an answer may be."""
        return {**_identity(model, system, self._problems), "new_tokens": self.new_tokens}

    def score(self, model: LoadedModel, system: str | None, *, progress: str) -> ItemScores:
        """Return which problems ``model`` works out.

        Raises:
            MeasurementError: see :func:`obliteratus.measure.generation.generate`.
        """
        encoded = encode(model, [each.prompt for each in self._problems], system=system)
        said = generate(model, encoded, max_new_tokens=self.new_tokens, task=progress)
        right = [
            is_right(one, answer.text) for one, answer in zip(self._problems, said, strict=True)
        ]
        return _scores(self.name, self._problems, right)

    @property
    def _problems(self) -> tuple[WordProblem, ...]:
        return word_problems(self.items or ALL_PROBLEMS)


Item = Question | WordProblem
BUILT_IN = {"multiple_choice": MultipleChoice, "word_problems": WordProblems}


def _identity(model: LoadedModel, system: str | None, items: Sequence[Item]) -> dict[str, Any]:
    encoded = encode(model, [each.prompt for each in items], system=system)
    return {"ids": _ids(items), "tokens": encoded.ids}


def _scores(task: str, items: Sequence[Item], right: Sequence[bool]) -> ItemScores:
    return ItemScores(task, METRIC, SOURCE, _ids(items), tuple(map(float, right)))


def _ids(items: Sequence[Item]) -> tuple[str, ...]:
    texts = [json.dumps([each.prompt, each.answer]) for each in items]
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)
