"""A contrast set split once, by id, into prompts to fit on, to choose by and to report on."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence

from obliteratus.errors import PromptError
from obliteratus.events import Note, emit
from obliteratus.prompts.contrast import ContrastSet, Prompt, Splits
from obliteratus.prompts.leakage import near_duplicates

RATIO = (4, 1, 1)
"""Fit, select and test: most prompts find the direction, the rest choose it and report on it."""
FEWEST = 2  # prompts of each class in each split: below two there is no spread to report
NAMES = ("fit", "select", "test")


def split(contrast: ContrastSet, *, sizes: tuple[int, int, int] | None = None) -> Splits:
    """Split ``contrast`` into fit, select and test, the same way every time.

    Each prompt's place follows from a hash of its id, so that adding prompts or reordering the file
    moves few of the others. Categories are spread over the splits in proportion. Pairs stay
    together; the classes of an unpaired set are split each on its own. ``sizes`` counts pairs (or
    prompts of each class); without it they are 4 : 1 : 1 by largest remainder, which makes
    512 / 128 / 128 of the built-in set, 32 / 8 / 8 of each category. A Note says how many select
    and test prompts have a near-duplicate among the fit prompts.

    Raises:
        PromptError: a split would have fewer than two prompts of a class; the message says how many
            are needed.
    """
    harmful = _assigned(contrast.harmful, sizes, "pairs" if contrast.is_paired else "harmful")
    harmless = harmful if contrast.is_paired else _assigned(contrast.harmless, sizes, "harmless")
    parts = [
        ContrastSet(
            name=f"{contrast.name}/{name}",
            harmful=tuple(contrast.harmful[row] for row in harmful[part]),
            harmless=tuple(contrast.harmless[row] for row in harmless[part]),
            is_paired=contrast.is_paired,
        )
        for part, name in enumerate(NAMES)
    ]
    splits = Splits(*parts)
    _note_leakage(splits)
    return splits


def largest_remainder(total: int, ratio: Sequence[int] = RATIO) -> tuple[int, ...]:
    """Return whole shares of ``total`` in ``ratio`` that sum to it (Hamilton's method).

    Each share is rounded down; what is left goes to the largest remainders, the first on a tie.
    """
    whole = sum(ratio)
    shares = [total * part // whole for part in ratio]
    by_remainder = sorted(range(len(ratio)), key=lambda i: (-(total * ratio[i] % whole), i))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


def fewest_prompts() -> int:
    """Return the smallest number that :func:`largest_remainder` splits into usable parts."""
    return next(n for n in itertools.count(1) if min(largest_remainder(n)) >= FEWEST)


def _assigned(
    prompts: Sequence[Prompt], sizes: tuple[int, int, int] | None, what: str
) -> list[list[int]]:
    """Return the rows of each split, in the order of ``prompts``."""
    counts = sizes or largest_remainder(len(prompts))
    if min(counts) < FEWEST:
        needed = fewest_prompts() if sizes is None else FEWEST
        raise PromptError(
            f"{len(prompts)} {what} cannot be split into fit, select and test with at least "
            f"{FEWEST} each (they would be {counts[0]}, {counts[1]} and {counts[2]}). "
            + (f"Give at least {needed}." if sizes is None else "Ask for larger splits.")
        )
    if sum(counts) > len(prompts):
        raise PromptError(
            f"splits of {counts[0]}, {counts[1]} and {counts[2]} need {sum(counts)} {what} and "
            f"there are {len(prompts)}. Add prompts, or ask for smaller splits."
        )
    order = iter(_stratified_order(prompts))
    return [sorted(itertools.islice(order, count)) for count in counts]


def _stratified_order(prompts: Sequence[Prompt]) -> list[int]:
    """Return the rows so that every stretch holds the categories in proportion.

    Inside its category a prompt's rank is that of its hashed id; rows are ordered by that rank as a
    fraction of the category's size.
    """
    hashes = [hashlib.sha256(prompt.id.encode()).hexdigest() for prompt in prompts]
    by_hash = sorted(range(len(prompts)), key=lambda row: hashes[row])
    sizes = Counter(prompt.category for prompt in prompts)
    seen: Counter[str | None] = Counter()
    depth: dict[int, float] = {}
    for row in by_hash:
        category = prompts[row].category
        depth[row] = (seen[category] + 0.5) / sizes[category]
        seen[category] += 1
    return sorted(by_hash, key=lambda row: depth[row])


def _note_leakage(splits: Splits) -> None:
    held_out = (*splits.select.harmful, *splits.test.harmful)
    found = near_duplicates(held_out, splits.fit.harmful)
    if found:
        worst = max(found, key=lambda pair: pair.similarity)
        emit(
            Note(
                f"{len(found)} of {len(held_out)} select and test prompts have a near-duplicate "
                f"among the fit prompts (for example '{worst.id}' and '{worst.nearest}', sharing "
                f"{worst.similarity:.0%} of their words): figures on them are optimistic."
            )
        )
