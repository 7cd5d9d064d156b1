"""Near-duplicates between sets of prompts, which would make a test prompt easy."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from obliteratus.prompts.contrast import Prompt

ROUNDING = 1e-9  # 0.7 * 10 is a little more than 7 in floating point
NEAR = 0.8  # Jaccard similarity of word sets: one word changed in ten


@dataclass(frozen=True)
class NearDuplicate:
    """The prompt ``id``, the ``nearest`` prompt of the other set, and their similarity."""

    id: str
    nearest: str
    similarity: float


def words(text: str) -> frozenset[str]:
    """Return the set of lower-case words and numbers in ``text``."""
    return frozenset(re.findall(r"\w+", text.lower()))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Return |A ∩ B| / |A ∪ B| (Jaccard), 1 for two empty sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


def near_duplicates(
    prompts: Sequence[Prompt], others: Sequence[Prompt], *, threshold: float = NEAR
) -> tuple[NearDuplicate, ...]:
    """Return the prompts whose word set has Jaccard similarity >= ``threshold`` with one of others.

    Exact, without comparing every pair: with the words ordered from rare to common, two sets that
    are so similar share one of the first |A| − ⌈threshold |A|⌉ + 1 words of each. ``threshold`` is
    in (0, 1].
    """
    here = [words(prompt.text) for prompt in prompts]
    there = [words(prompt.text) for prompt in others]
    counts = Counter(word for group in (*here, *there) for word in group)

    def first_words(group: frozenset[str]) -> list[str]:
        ordered = sorted(group, key=lambda word: (counts[word], word))
        return ordered[: len(group) - math.ceil(threshold * len(group) - ROUNDING) + 1]

    holders: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(there):
        for word in first_words(group):
            holders[word].append(index)
    found: list[NearDuplicate] = []
    for prompt, group in zip(prompts, here, strict=True):
        near = {index for word in first_words(group) for index in holders[word]}
        best = max(((similarity(group, there[i]), -i) for i in near), default=(0.0, 0))
        if best[0] >= threshold:
            found.append(NearDuplicate(prompt.id, others[-best[1]].id, best[0]))
    return tuple(found)
