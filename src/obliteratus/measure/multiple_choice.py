"""Multiple-choice questions from tables of facts and from Python expressions, scored by letter."""

import random
import tomllib
from dataclasses import dataclass
from importlib import resources

import torch

from obliteratus.errors import MeasurementError
from obliteratus.measure.head import head_of
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import last_hidden

LETTERS = "ABCD"
INSTRUCTION = "Answer with the letter of the right choice only."
EXPRESSIONS = 60
"""Questions about Python beside those from the tables."""


@dataclass(frozen=True)
class Question:
    """A question with four choices; ``answer`` is the index of the right one."""

    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """The question as it is put to the model."""
        lines = [
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True)
        ]
        return "\n".join([self.text, *lines, INSTRUCTION])


def multiple_choice(*, seed: int = 0) -> tuple[Question, ...]:
    """Return all questions: one per fact of ``data/facts.toml``, and those about Python.

    Choices and their order are drawn with ``seed``; wrong ones come from the same table.
    """
    rng = random.Random(seed)
    text = resources.files("obliteratus.measure").joinpath("data/facts.toml").read_text("utf-8")
    questions: list[Question] = []
    for table in tomllib.loads(text).values():
        answers = list(dict.fromkeys(right for _, right in table["pairs"]))
        for asked, right in table["pairs"]:
            wrong = rng.sample([each for each in answers if each != right], len(LETTERS) - 1)
            questions.append(_question(table["question"].format(asked), right, wrong, rng))
    seen: set[str] = set()
    while len(seen) < EXPRESSIONS:
        expression, value = _expression(rng)
        if expression not in seen:
            seen.add(expression)
            away = [n for n in range(-9, 10) if n]
            wrong = [str(value + step) for step in rng.sample(away, len(LETTERS) - 1)]
            asked = f"What does the Python expression {expression} evaluate to?"
            questions.append(_question(asked, str(value), wrong, rng))
    return tuple(questions)


def chosen(
    model: LoadedModel,
    questions: tuple[Question, ...],
    *,
    system: str | None = None,
    task: str = "multiple choice",
) -> tuple[int, ...]:
    """Return the choice of each question whose letter the model makes most probable as its answer.

    A letter counts with and without a space before it, as the tokenizer of the model has it.
    ``system`` goes before each question; Progress events name ``task``.

    Raises:
        MeasurementError: the tokenizer has no single token for a letter, or logits are NaN.
    """
    letters = [_letter_tokens(model, letter) for letter in LETTERS]
    encoded = encode(model, [question.prompt for question in questions], system=system)
    hidden, head = last_hidden(model, encoded, task=task), head_of(model)
    found: list[int] = []
    for row in hidden:
        log_p = head.log_probabilities(row)
        scores = [float(log_p[list(tokens)].logsumexp(0)) for tokens in letters]
        found.append(int(torch.tensor(scores).argmax()))
    return tuple(found)


def _question(text: str, right: str, wrong: list[str], rng: random.Random) -> Question:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return Question(text, tuple(choices), choices.index(right))


def _expression(rng: random.Random) -> tuple[str, int]:
    a, b, c = rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 9)
    word = rng.choice(("lantern", "river", "mountain", "paper", "orchestra", "copper"))
    return rng.choice(
        (
            (f"{a} + {b} * {c}", a + b * c),
            (f"({a} + {b}) * {c}", (a + b) * c),
            (f"{a * b} // {b} + {c}", a + c),
            (f"{a * b + c} % {b}", (a * b + c) % b),
            (f"len('{word}') + {a}", len(word) + a),
            (f"max({a}, {b}, {c}) - {a}", max(a, b, c) - a),
            (f"sum(range({b}))", sum(range(b))),
            (f"len([{', '.join(str(n) for n in range(b))}]) * {c}", b * c),
        )
    )


def _letter_tokens(model: LoadedModel, letter: str) -> tuple[int, ...]:
    found: set[int] = set()
    for text in (letter, f" {letter}"):
        ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        if len(ids) == 1:
            found.add(ids[0])
    if not found:
        raise MeasurementError(
            f"the tokenizer of {model.source.asked} has no token of its own for the letter "
            f"{letter}, so its choice cannot be read. Measure this model by word problems."
        )
    return tuple(sorted(found))
