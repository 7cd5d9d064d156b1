"""Prompts for planted transformers: minimal pairs that differ in one word, and capability items.

The word that matters stands anywhere in its prompt, prompts differ in length, and both sides of a
pair have the same number of tokens, so a circuit cannot be found by its position.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.testing.planted_vocabulary import FILLERS, HARM, ITEMS, NOUNS, TRIGGERS, VERBS

Triggers = Literal["independent", "harmful", "harmless", "none"]
"""Which prompts have a trigger word: each at random, all of one class, or none."""
FEWEST_FILLERS, MOST_FILLERS = 4, 9
MEAN_WORDS = 2 + (FEWEST_FILLERS + MOST_FILLERS) / 2


@dataclass(frozen=True)
class Item:
    """A capability question: ``prompt`` asks about a thing that only ``answer`` is right for."""

    prompt: Prompt
    answer: str


def planted_prompts(
    n: int = 64,
    *,
    seed: int = 0,
    triggers: Triggers = "none",
    categories: Sequence[str] = tuple(HARM),
) -> ContrastSet:
    """Return ``n`` pairs of a prompt with a word of harm and the same prompt with another noun.

    ``categories`` are dealt in turn, and both sides of a pair have the pair's. With ``triggers``
    independent, half of the prompts of either class have one, drawn for each side of a pair.
    """
    drawn = random.Random(f"prompts {seed}")
    harmful: dict[str, Prompt] = {}
    harmless: list[Prompt] = []
    while len(harmful) < n:
        index = len(harmful)
        category = categories[index % len(categories)]
        verb, words = drawn.choice(VERBS), _fillers(drawn)
        place, other = drawn.sample(range(len(words)), 2)
        sides: list[str] = []
        for is_harmful, choices in ((True, HARM[category]), (False, NOUNS)):
            side = list(words)
            side[place] = drawn.choice(choices)
            if _has_trigger(drawn, triggers, is_harmful):
                side[other] = drawn.choice(TRIGGERS)
            sides.append(" ".join((verb, *side)))
        if sides[0] not in harmful and all(sides[1] != each.text for each in harmless):
            harmful[sides[0]] = Prompt(f"p{index:04d}", sides[0], category)
            harmless.append(Prompt(f"p{index:04d}", sides[1], category))
    return ContrastSet(f"planted-{seed}", tuple(harmful.values()), tuple(harmless), is_paired=True)


def planted_items(n: int = 32, *, seed: int = 0) -> tuple[Item, ...]:
    """Return ``n`` capability questions, the right answers dealt in turn."""
    drawn = random.Random(f"items {seed}")
    items: list[Item] = []
    for index in range(n):
        answer = list(ITEMS)[index % len(ITEMS)]
        words = _fillers(drawn)
        words[drawn.randrange(len(words))] = drawn.choice(ITEMS[answer])
        text = " ".join((drawn.choice(VERBS), *words))
        items.append(Item(Prompt(f"c{index:04d}", text, answer), answer))
    return tuple(items)


def planted_text(n: int = 400, *, seed: int = 0) -> tuple[str, ...]:
    """Return ``n`` texts of all the words that there are, each with what matters in it at random.

    Half of them have a word of harm and half a trigger word, independently: text that says nothing
    about what is refused, and shows a model everything that prompts are made of.
    """
    drawn = random.Random(f"text {seed}")
    every = tuple(word for words in HARM.values() for word in words)
    found: dict[str, None] = {}
    while len(found) < n:
        words = [drawn.choice(VERBS), *_fillers(drawn)]
        place, other = drawn.sample(range(1, len(words)), 2)
        words[place] = drawn.choice(every if drawn.random() < 0.5 else NOUNS)
        if drawn.random() < 0.5:
            words[other] = drawn.choice(TRIGGERS)
        found.setdefault(" ".join(words))
    return tuple(found)


def write_prompts(folder: Path, contrast: ContrastSet) -> None:
    """Write ``harmful.jsonl`` and ``harmless.jsonl`` into ``folder``, paired by their ids."""
    for name, prompts in (("harmful", contrast.harmful), ("harmless", contrast.harmless)):
        rows = [{"id": p.id, "text": p.text, "category": p.category} for p in prompts]
        lines = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def _fillers(drawn: random.Random) -> list[str]:
    """Return fillers, and one more in whose place the word that matters goes."""
    return drawn.sample(FILLERS, drawn.randint(FEWEST_FILLERS, MOST_FILLERS) + 1)


def _has_trigger(drawn: random.Random, triggers: Triggers, is_harmful: bool) -> bool:
    if triggers == "independent":
        return drawn.random() < 0.5
    return triggers == ("harmful" if is_harmful else "harmless")
