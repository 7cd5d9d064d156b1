"""The prompts that ship in the package, written for this project."""

import functools
import json
from importlib import resources

from obliteratus.prompts.contrast import ContrastSet, Prompt


@functools.cache
def refusal() -> ContrastSet:
    """Return 768 minimal pairs of a harmful and a harmless request, 48 in each of 16 categories.

    Both sides of a pair have its id. The harmful requests hold no operational detail: they exist
    to be refused.
    """
    rows = _rows("refusal.jsonl")
    return ContrastSet(
        name="refusal",
        harmful=tuple(Prompt(row["id"], row["harmful"], row["category"]) for row in rows),
        harmless=tuple(Prompt(row["id"], row["harmless"], row["category"]) for row in rows),
        is_paired=True,
    )


@functools.cache
def over_refusal() -> tuple[Prompt, ...]:
    """Return 100 safe prompts that look unsafe; their category is what makes them look so."""
    return tuple(Prompt(row["id"], row["text"], row["kind"]) for row in _rows("over_refusal.jsonl"))


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("obliteratus.prompts").joinpath("data", name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]
