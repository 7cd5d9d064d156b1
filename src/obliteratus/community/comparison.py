"""Two runs beside each other: paired by prompt where both asked the same prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from obliteratus.community.record import (
    Metric,
    Outcomes,
    PromptSet,
    Protocol,
    Record,
    Results,
)
from obliteratus.errors import UsageError
from obliteratus.statistics.bootstrap import bootstrap_ratio
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.independent import independent_difference
from obliteratus.statistics.multiple import holm
from obliteratus.statistics.paired import mcnemar
from obliteratus.statistics.permutation import sign_flip
from obliteratus.statistics.words import Unit

SHARES: dict[str, tuple[PromptSet, str]] = {
    "refusal_harmful": ("harmful", "r"),
    "success_harmful": ("harmful", "c"),
    "degenerate_harmful": ("harmful", "d"),
    "refusal_harmless": ("harmless", "r"),
    "degenerate_harmless": ("harmless", "d"),
    "over_refusal": ("lookalikes", "r"),
}
"""Key of a share -> the class of prompts, and the letter of the outcome that is counted."""
UNDETERMINED = "u"
DIVERGENCE, PERPLEXITY = "kl_first", "perplexity_heldout"
DIFFERENT = {
    "prompts": "the test prompts",
    "harmful": "the number of prompts",
    "harmless": "the number of harmless prompts",
    "system": "the system prompt",
    "judge": "the judge",
    "new_tokens": "the length of the answers",
    "documents": "the held-out documents",
}
"""Field of :class:`Protocol` -> what differs, in words."""


@dataclass(frozen=True)
class Compared:
    """One quantity of two runs.

    Attributes:
        key: The quantity.
        unit: What it is measured in; a change of perplexity is a ratio.
        first: Of the edited model of the first run; of perplexity its ratio to the original.
        second: The same of the second run.
        difference: second − first, of perplexity second / first.
        is_paired: Whether it was compared prompt by prompt (of perplexity, document by document).
            If not, the interval is that of independent measurements, and wider.
        test: The test behind ``p_value``; None where nothing is paired.
        p_value: Two-sided and not corrected.
        adjusted_p: Holm's over all quantities that were tested.
    """

    key: str
    unit: Unit
    first: Estimate
    second: Estimate
    difference: Estimate
    is_paired: bool
    test: str | None = None
    p_value: float | None = None
    adjusted_p: float | None = None


@dataclass(frozen=True)
class ComparedRuns:
    """All quantities that two runs have in common, and in what their measurements differ."""

    rows: tuple[Compared, ...]
    differ_in: tuple[str, ...]


def compare_runs(first: Record, second: Record, *, seed: int = 0) -> ComparedRuns:
    """Compare what two runs measured of their edited models.

    A quantity is paired where both have it by prompt (shares by exact McNemar, the divergence by
    flipping signs) or by document (perplexity), for the same prompts, judge and length of answers.
    Otherwise its difference has the interval of independent measurements. ``seed`` is that of the
    resampling.

    Raises:
        UsageError: one of them measured nothing, or they have no quantity in common.
    """
    one, two = (_results(each, place) for each, place in ((first, "first"), (second, "second")))
    differ = differences(one.protocol, two.protocol)
    rows: list[Compared] = []
    for mine in one.metrics:
        theirs = two.metric(mine.key)
        if theirs is None:
            continue
        pair = _sides(mine, theirs)
        if pair is None:
            continue
        tested = _paired(mine.key, one, two, seed=seed)
        rows.append(_row(mine, pair, tested))
    if not rows:
        raise UsageError("the two runs measured nothing in common. Compare two edits of one kind.")
    family = {row.key: row.p_value for row in rows if row.p_value is not None}
    adjusted = holm(family) if family else {}
    return ComparedRuns(
        tuple(replace(row, adjusted_p=adjusted.get(row.key)) for row in rows), differ
    )


def differences(one: Protocol, two: Protocol) -> tuple[str, ...]:
    """Return in words in what two measurements differ; nothing where rows can be compared."""
    return tuple(
        words for name, words in DIFFERENT.items() if getattr(one, name) != getattr(two, name)
    )


def _results(record: Record, place: str) -> Results:
    if record.results is None:
        raise UsageError(
            f"the {place} run ({record.kind}) measured no edited model, so there is nothing to "
            "compare. Give two runs of obliterate, harden or verify."
        )
    return record.results


def _sides(one: Metric, two: Metric) -> tuple[Estimate, Estimate] | None:
    """Return what is compared: the edited models, of perplexity the ratios to their originals."""
    name = "change" if one.unit == "perplexity" else "edited"
    first, second = getattr(one, name), getattr(two, name)
    return None if first is None or second is None else (first, second)


def _row(metric: Metric, pair: tuple[Estimate, Estimate], tested: Comparison | None) -> Compared:
    is_ratio = metric.unit == "perplexity"
    if tested is not None:
        difference = tested.effect
    elif is_ratio:
        first, second = (_log(each) for each in pair)
        difference = _exp(independent_difference(first, second))
    else:
        difference = independent_difference(*pair)
    return Compared(
        key=metric.key,
        unit="ratio" if is_ratio else metric.unit,
        first=pair[0],
        second=pair[1],
        difference=difference,
        is_paired=tested is not None,
        test=None if tested is None else tested.test,
        p_value=None if tested is None else tested.p_value,
    )


def _paired(key: str, one: Results, two: Results, *, seed: int) -> Comparison | None:
    """Return the paired test of one quantity, or None where it cannot be paired."""
    mine, theirs = one.protocol, two.protocol
    if key == PERPLEXITY:
        is_same = mine.documents == theirs.documents and len(one.documents) > 1
        return _by_document(one, two, seed=seed) if is_same and one.tokens == two.tokens else None
    if key == DIVERGENCE:
        is_same = (mine.prompts, mine.system) == (theirs.prompts, theirs.system)
        is_same &= len(one.divergences) == len(two.divergences) > 1
        return _by_prompt(one.divergences, two.divergences, seed=seed) if is_same else None
    same = ("prompts", "system", "judge", "new_tokens")
    if key not in SHARES or any(getattr(mine, name) != getattr(theirs, name) for name in same):
        return None
    prompts, letter = SHARES[key]
    return _by_outcome(_outcomes(one, prompts), _outcomes(two, prompts), letter)


def _by_outcome(one: Outcomes | None, two: Outcomes | None, letter: str) -> Comparison | None:
    if one is None or two is None or one.ids != two.ids:
        return None
    known = [
        (a == letter, b == letter)
        for a, b in zip(one.edited, two.edited, strict=True)
        if UNDETERMINED not in (a, b)
    ]
    return mcnemar([a for a, _ in known], [b for _, b in known]) if known else None


def _by_prompt(one: Sequence[float], two: Sequence[float], *, seed: int) -> Comparison:
    return sign_flip(_array(two) - _array(one), seed=seed)


def _by_document(one: Results, two: Results, *, seed: int) -> Comparison:
    tokens = _array(one.tokens)
    change = (_array(two.documents) - _array(one.documents)) * tokens
    test = sign_flip(change, seed=seed)
    return replace(test, effect=_exp(bootstrap_ratio(change, tokens, seed=seed)))


def _outcomes(results: Results, prompts: PromptSet) -> Outcomes | None:
    return next((each for each in results.outcomes if each.prompts == prompts), None)


def _array(values: Sequence[float | int]) -> Float64[np.ndarray, " unit"]:
    return np.asarray(values, dtype=np.float64)


def _log(ratio: Estimate) -> Estimate:
    low, high = ratio.interval
    return replace(ratio, value=math.log(ratio.value), interval=(math.log(low), math.log(high)))


def _exp(estimate: Estimate) -> Estimate:
    low, high = estimate.interval
    ends = (math.exp(low), math.exp(high))
    return replace(estimate, value=math.exp(estimate.value), interval=ends, null=1.0)
