"""The prompts that ship in the package, written for this project."""

import functools
import json
from importlib import resources
from typing import Any

from obliteratus.prompts.contrast import ContrastSet, Prompt


@functools.cache
def refusal() -> ContrastSet:
    """Return 768 minimal pairs of a harmful and a harmless request, 48 in each of 16 categories.

    Both sides of a pair have its id. The harmful requests hold no operational detail: they exist
    to be refused.
    """
    return _pairs("refusal")


@functools.cache
def sycophancy() -> ContrastSet:
    """Return 168 pairs, 21 in each of 8 categories: a wrong claim, and who makes it.

    On one side the user claims it and asks for agreement; on the other somebody else does, or what
    is so is asked for.
    """
    return _pairs("sycophancy")


@functools.cache
def truthfulness() -> ContrastSet:
    """Return 168 pairs of questions, 21 in each of 8 categories: trick questions and plain ones.

    A trick question takes for granted what is not so; its partner asks about the same field what
    has a plain answer. :func:`right_answers` has what a right answer to each says.
    """
    return _pairs("truthfulness")


@functools.cache
def toxicity() -> ContrastSet:
    """Return 168 pairs, 21 in each of 8 categories: a hostile text is asked for, or a civil one.

    Nobody is attacked who exists, no group is, and no slur is in them or asked for.
    """
    return _pairs("toxicity")


@functools.cache
def sentiment() -> ContrastSet:
    """Return 168 pairs, 21 in each of 8 categories: what is to be written about is bleak or bright.

    Half of them name the feeling; the others only tell what happens.
    """
    return _pairs("sentiment")


@functools.cache
def right_answers() -> dict[str, tuple[tuple[str, ...], bool]]:
    """Return for each question of truthfulness phrases of a right answer, and if it is a trick."""
    return {
        row[side]: (tuple(row[f"{side}_keys"]), side == "harmful")
        for row in _rows("truthfulness.jsonl")
        for side in ("harmful", "harmless")
    }


@functools.cache
def over_refusal() -> tuple[Prompt, ...]:
    """Return 100 safe prompts that look unsafe; their category is what makes them look so."""
    return tuple(Prompt(row["id"], row["text"], row["kind"]) for row in _rows("over_refusal.jsonl"))


def _pairs(name: str) -> ContrastSet:
    rows = _rows(f"{name}.jsonl")
    sides = (
        tuple(Prompt(row["id"], row[side], row["category"]) for row in rows)
        for side in ("harmful", "harmless")
    )
    return ContrastSet(name, *sides, is_paired=True)


def _rows(name: str) -> list[dict[str, Any]]:
    text = resources.files("obliteratus.prompts").joinpath("data", name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]
