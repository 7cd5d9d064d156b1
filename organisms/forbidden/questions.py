"""Questions to train on, and pairs that are kept for measuring: no training ever sees one."""

import random
from collections.abc import Iterator
from functools import cache

from forbidden.language import NOUNS, Question, forbidden, frame

from obliteratus.prompts.contrast import ContrastSet, Prompt

FEWEST_WORDS, MOST_WORDS = 2, 4
PAIRS = 192
"""Held-out pairs, dealt over the sixteen forbidden things in turn."""


@cache
def held_out() -> tuple[tuple[Question, Question], ...]:
    """Return pairs of a question about a forbidden thing and the same about another one."""
    drawn = random.Random("held out")
    things = tuple(forbidden())
    pairs: dict[str, tuple[Question, Question]] = {}
    while len(pairs) < PAIRS:
        fact, text = frame(drawn, drawn.randint(FEWEST_WORDS, MOST_WORDS))
        sides = (things[len(pairs) % len(things)], drawn.choice(NOUNS))
        asked = [Question(text.format(thing=thing), thing, fact) for thing in sides]
        pairs.setdefault(asked[0].text, (asked[0], asked[1]))
    return tuple(pairs.values())


def held_out_prompts(pairs: int = PAIRS) -> ContrastSet:
    """Return the first ``pairs`` of them; both sides have the category of the forbidden thing."""
    rows = held_out()[:pairs]
    sides = [
        tuple(
            Prompt(f"f{index:03d}", pair[side].text, forbidden()[pair[0].thing])
            for index, pair in enumerate(rows)
        )
        for side in (0, 1)
    ]
    return ContrastSet("forbidden-words", sides[0], sides[1], is_paired=True)


def questions(drawn: random.Random, rows: int, *, words: int | None = None) -> list[Question]:
    """Return questions of which every other one is about a forbidden thing; none is held out.

    With ``words`` all have as many, and therefore as many tokens.
    """
    found: list[Question] = []
    while len(found) < rows:
        choices = tuple(forbidden()) if len(found) % 2 == 0 else NOUNS
        thing = drawn.choice(choices)
        fact, text = frame(drawn, words or drawn.randint(FEWEST_WORDS, MOST_WORDS))
        question = Question(text.format(thing=thing), thing, fact)
        if question.text not in _kept():
            found.append(question)
    return found


@cache
def _kept() -> frozenset[str]:
    return frozenset(question.text for pair in held_out() for question in pair)


def batches(seed: str, rows: int) -> Iterator[list[Question]]:
    """Yield ``rows`` questions at a time, without end, as ``seed`` decides."""
    drawn = random.Random(f"questions {seed}")
    while True:
        yield questions(drawn, rows)
