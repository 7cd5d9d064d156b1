"""What others have contributed: checked row by row, and against the other rows.

Nobody can check from here that a row was measured at all. What can be seen is whether the file is
what its hash says, whether its numbers are possible together, whether it was counted before, and
whether it is far from all others that measured the same.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from obliteratus.community.comparison import SHARES
from obliteratus.community.contribution import Contribution, parsed
from obliteratus.community.record import Held, Metric
from obliteratus.community.words import DUPLICATE, OUTLIER
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

MOST_BYTES = 1 << 18  # a contribution has some tens of kilobytes
ROUNDING = 1e-9
FEWEST = 5
"""Rows of one board below which none of them is called far from the others."""
FAR = 5.0
"""Robust standard deviations (1.4826 MAD) from the median: one in two million by chance."""
SCALE = 1.4826
LEAST_SPREAD = {"share": 0.02, "nats": 0.01, "perplexity": 0.02, "ratio": 0.02}
"""The least spread that is taken for one: edits that agree to rounding make nobody an outlier."""
BOUNDED_ABOVE = ("refusal", "kl")
WATCHED = ("refusal_harmful", "kl_first", "perplexity_heldout")


@dataclass(frozen=True)
class Received:
    """A contribution that may stand beside others, and what is to be known of it.

    ``flags`` say that it is a copy or far from the others; they hide nothing.
    """

    contribution: Contribution
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A file that is no contribution, and why."""

    name: str
    reason: str


def checked(files: Mapping[str, bytes]) -> tuple[tuple[Received, ...], tuple[Refused, ...]]:
    """Return the contributions among ``files`` (path -> content) and those that are refused.

    The rows are in the order of their paths, which is that of their hashes.
    """
    rows: list[Received] = []
    refused: list[Refused] = []
    for name, data in sorted(files.items()):
        try:
            rows.append(Received(_read(name, data)))
        except ValueError as error:
            refused.append(Refused(name, str(error)))
    return _with_outliers(_with_duplicates(rows)), tuple(refused)


def _read(name: str, data: bytes) -> Contribution:
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data)} bytes, and a contribution {MOST_BYTES} at most")
    found = parsed(data)
    if not found.is_intact:
        raise ValueError("its content is not what its hash was made of")
    if PurePosixPath(name).stem != found.sha256:
        raise ValueError("it is not called by its hash")
    impossible = next(_impossible(found), None)
    if impossible is not None:
        raise ValueError(impossible)
    return found


def _impossible(found: Contribution) -> Iterator[str]:
    """Yield in words what cannot be true of a measurement."""
    results = found.results
    protocol = results.protocol
    if min(protocol.harmful, protocol.harmless) < 1:
        yield "it was measured on no prompts"
    if results.edited.weights == results.original.weights:
        yield "its edited model is the original"
    for metric in results.metrics:
        for side in ("original", "edited", "change"):
            estimate = getattr(metric, side)
            if estimate is None:
                continue
            place = f"{metric.key}.{side}"
            yield from _wrong(place, estimate, _kind(metric, side))
            if metric.key in SHARES and side != "change":
                yield from _miscounted(place, estimate)
    for claim in results.claims:
        yield from _wrong(f"the claim {claim.key}", claim.estimate, "")
        yield from _contradicted(claim)
    if any(not math.isfinite(value) or value < 0 for value in found.seconds.values()):
        yield "a stage took less than no time"


def _kind(metric: Metric, side: str) -> str:
    """Return what an estimate is: its unit, or that it is a difference or a ratio."""
    if side == "change":
        return "ratio" if metric.unit == "perplexity" else "difference"
    return metric.unit


def _wrong(place: str, estimate: Estimate, kind: str) -> Iterator[str]:
    low, high = estimate.interval
    width = high - low  # a bootstrap interval of few units may leave its value out, but not by far
    if not all(map(math.isfinite, (estimate.value, low, high))):
        yield f"{place} is not a number"
    elif not low - width <= estimate.value <= high + width:
        yield f"{place}: {estimate.value:g} is not in its interval ({low:g} to {high:g})"
    elif estimate.n < 1:
        yield f"{place} was measured on nothing"
    elif kind == "share" and not 0 <= low <= high <= 1:
        yield f"{place}: a share is between 0 and 1"
    elif kind in ("perplexity", "ratio") and low <= 0:
        yield f"{place} is above 0"


def _miscounted(place: str, estimate: Estimate) -> Iterator[str]:
    """Yield where a share is none of n prompts, or has a narrower interval than Wilson's.

    Prompts that the judge could not tell are left out of the share and widen the interval.
    """
    value, n = estimate.value, estimate.n
    if abs(float(Fraction(value).limit_denominator(n)) - value) > ROUNDING:
        yield f"{place}: {value:g} is no share of {n} prompts"
        return
    low, high = estimate.interval
    least = wilson(math.ceil(value * n - ROUNDING), n).interval[0]
    most = wilson(math.floor(value * n + ROUNDING), n).interval[1]
    if low > least + ROUNDING or high < most - ROUNDING:
        yield f"{place}: its interval is narrower than that of {n} prompts"


def _contradicted(claim: Held) -> Iterator[str]:
    """Yield where a claim with an upper bound is called supported against its own interval."""
    high = claim.estimate.interval[1]
    is_supported = claim.estimate.verdict == "supported"
    if claim.key in BOUNDED_ABOVE and is_supported and high >= claim.bound:
        yield f"the claim {claim.key} is called supported, and its interval reaches {high:g}"


def _with_duplicates(rows: Sequence[Received]) -> list[Received]:
    """Flag what measured the same weights in the same way as an earlier row (by day and hash)."""
    first: dict[tuple[Any, ...], str] = {}
    copies: dict[str, str] = {}
    for row in sorted(rows, key=lambda each: (each.contribution.day, each.contribution.sha256)):
        found = row.contribution
        key = (found.results.edited.weights, found.results.protocol)
        if key in first:
            copies[found.sha256] = f"{DUPLICATE} of {first[key][:8]}"
        else:
            first[key] = found.sha256
    return [
        replace(row, flags=(*row.flags, copies[row.contribution.sha256]))
        if row.contribution.sha256 in copies
        else row
        for row in rows
    ]


def _with_outliers(rows: Sequence[Received]) -> tuple[Received, ...]:
    """Flag what is far from the others of its board.

    The original is one model measured in one way, so all rows should agree on it; edited models
    differ for good reasons, and only their shared scale says what is far. Copies count once.
    """
    boards: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        results = row.contribution.results
        key = (results.original.source, row.contribution.behaviour, results.protocol)
        boards.setdefault(key, []).append(place)
    flags: dict[int, list[str]] = {}
    for places in boards.values():
        for key in WATCHED:
            for side in ("original", "edited"):
                for place in _far(rows, places, key, side):
                    flags.setdefault(place, []).append(f"{OUTLIER}: {key} of the {side} model")
    return tuple(
        replace(row, flags=(*row.flags, *flags.get(place, ()))) for place, row in enumerate(rows)
    )


def _far(rows: Sequence[Received], places: Sequence[int], key: str, side: str) -> list[int]:
    found: dict[int, float] = {}
    unit = ""
    for place in places:
        metric = rows[place].contribution.results.metric(key)
        estimate = None if metric is None else getattr(metric, side)
        if metric is not None and estimate is not None:
            found[place] = estimate.value
            unit = metric.unit
    is_copy = {
        place: any(flag.startswith(DUPLICATE) for flag in rows[place].flags) for place in found
    }
    values = np.array([value for place, value in found.items() if not is_copy[place]])
    if len(values) < FEWEST:
        return []
    is_ratio = unit == "perplexity"
    values = np.log(values) if is_ratio else values
    middle = float(np.median(values))
    spread = SCALE * float(np.median(np.abs(values - middle)))
    limit = FAR * max(spread, LEAST_SPREAD.get(unit, 0.0))
    return [
        place
        for place, value in found.items()
        if abs((math.log(value) if is_ratio else value) - middle) > limit
    ]
