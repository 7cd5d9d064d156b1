"""What every extractor owes, checked: for the authors of built-in ones and of plugins.

Register an extractor, then assert that ``list(failures(EXTRACTORS["mine"]))`` is empty.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.samples import Extractor, Samples
from obliteratus.errors import DirectionError
from obliteratus.operator.bases import ORTHONORMAL_TOLERANCE
from obliteratus.testing.planted_samples import (
    PROMPTS,
    ROGUE,
    SHIFT,
    WIDTH,
    Planted,
    largest_angle,
    planted,
    samples_of,
)

Check = Literal[
    "planted",
    "null",
    "common component",
    "rogue coordinate",
    "basis",
    "max_rank",
    "order of prompts",
    "scale",
    "errors",
]
SEEDS = range(3)
NULL_SEEDS = range(16)
MANY = 1024
"""Prompts beside a rogue coordinate: its noise in δ is then 0.5, for a shift of 6."""
SHARED = 10 * SHIFT
RANKS = (1, 2, 5)
SAME = 1e-6
"""Largest difference of rows that should be equal, for sums in another order."""


@dataclass(frozen=True)
class Failure:
    """A check that an extractor does not pass, and what was found."""

    check: Check
    finding: str


@dataclass(frozen=True)
class Limit:
    """A check that a published method is known to fail, on which kinds of sets, and why."""

    extractor: str
    check: Check
    pairings: tuple[bool, ...]
    reason: str


LIMITS = (
    Limit(
        "paired_svd",
        "rogue coordinate",
        (True, False),
        "DᵀD/n = δδᵀ + Cov: the first singular vector is the axis of the largest variance where "
        "that exceeds ‖δ‖². Use whitened_svd or difference_of_means.",
    ),
    Limit(
        "som",
        "common component",
        (True,),
        "the map follows what varies most among harmful prompts, and does not know that their "
        "harmless partners vary alike. Use category_svd for several directions of paired prompts.",
    ),
)
"""Of the built-in extractors; a test shows that there are these and no others."""


def limits(extractor: str, *, is_paired: bool) -> frozenset[Check]:
    """Return the checks that the built-in ``extractor`` is known to fail."""
    return frozenset(
        limit.check
        for limit in LIMITS
        if limit.extractor == extractor and is_paired in limit.pairings
    )


def failures(
    extract: Extractor, *, is_paired: bool = True, efficiency: float = 0.8
) -> Iterator[Failure]:
    """Yield what ``extract`` does not do as it should; nothing when all is right.

    ``extract(samples, max_rank=k)`` must

    * find a planted direction within the angle that n, d_model and the noise explain for an
      estimate of ``efficiency`` (:func:`obliteratus.testing.planted_samples.largest_angle`), also
      beside a long mean that both classes share and with one coordinate of high variance;
    * find nothing in particular where the classes do not differ;
    * return orthonormal float64 rows, at most k and the same leading ones for every k, row 0 with a
      positive part of δ;
    * return the same for the same samples (bit for bit), in any order of the prompts (of the pairs,
      if ``is_paired``) and at any scale; the sign of rows without a part of δ may differ;
    * refuse classes without a difference and numbers that are not finite with a ``DirectionError``.
    """
    yield from _planted_failures(extract, is_paired, efficiency)
    yield from _null_failures(extract, is_paired)
    yield from _basis_failures(extract, is_paired)
    yield from _invariance_failures(extract, is_paired)
    yield from _error_failures(extract, is_paired)


def angle_to(rows: Float[Tensor, "rank d_model"], direction: Float64[Tensor, " d_model"]) -> float:
    """Return the angle in degrees between row 0 and ``direction``, signs included."""
    return float(torch.rad2deg(torch.arccos((rows[0].to(direction) @ direction).clamp(-1, 1))))


def _planted_failures(extract: Extractor, is_paired: bool, efficiency: float) -> Iterator[Failure]:
    plain = largest_angle(n=PROMPTS, efficiency=efficiency)
    rogue = largest_angle(n=MANY, rogue=ROGUE, efficiency=efficiency)
    cases: tuple[tuple[Check, float, Callable[[int], Planted]], ...] = (
        ("planted", plain, lambda seed: planted(seed, is_paired=is_paired)),
        ("common component", plain, lambda seed: _confounded(seed, is_paired)),
        (
            "rogue coordinate",
            rogue,
            lambda seed: planted(seed, n=MANY, rogue=ROGUE, is_paired=is_paired),
        ),
    )
    for check, bound, draw in cases:
        found = [draw(seed) for seed in SEEDS]
        worst = max(angle_to(extract(each.samples, max_rank=1), each.direction) for each in found)
        if not worst <= bound:
            yield Failure(
                check, f"row 0 is {worst:.0f}° from the planted direction (≤ {bound:.0f}°)"
            )


def _confounded(seed: int, is_paired: bool) -> Planted:
    """What both prompts of a pair share differs from pair to pair; unpaired ones share a mean."""
    if is_paired:
        return planted(seed, shared=SHARED)
    return planted(seed, common=1000 * SHIFT, is_paired=False)


def _null_failures(extract: Extractor, is_paired: bool) -> Iterator[Failure]:
    rows = torch.cat(
        [
            extract(planted(seed, shift=0.0, is_paired=is_paired).samples, max_rank=1)[:1]
            for seed in NULL_SEEDS
        ]
    )
    cosines = (rows @ rows.T).square()
    count = len(rows)
    mean = float((cosines.sum() - count) / (count * (count - 1)))
    if not mean <= 3 / WIDTH:
        yield Failure(
            "null",
            "without a difference the rows of independent samples share a direction: mean squared "
            f"cosine {mean:.2f} (chance: {1 / WIDTH:.2f})",
        )


def _basis_failures(extract: Extractor, is_paired: bool) -> Iterator[Failure]:
    samples = planted(is_paired=is_paired).samples
    bases = {rank: extract(samples, max_rank=rank) for rank in RANKS}
    for rank, rows in bases.items():
        if not 1 <= len(rows) <= rank:
            yield Failure("max_rank", f"max_rank={rank} gives {len(rows)} rows")
        elif float((rows[:1] - bases[RANKS[-1]][:1]).abs().max()) > SAME:
            yield Failure("max_rank", f"row 0 of max_rank={rank} is not that of {RANKS[-1]}")
        if rows.dtype != torch.float64:
            yield Failure("basis", f"the rows are {rows.dtype}")
        gram = float((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).abs().max())
        if not gram <= ORTHONORMAL_TOLERANCE:
            yield Failure("basis", f"the rows are not orthonormal, by {gram:.1e}")
        if not float(rows[0].to(torch.float64) @ samples.delta) > 0:
            yield Failure("basis", "row 0 has no positive part of δ")


def _invariance_failures(extract: Extractor, is_paired: bool) -> Iterator[Failure]:
    samples = planted(is_paired=is_paired).samples
    rows = extract(samples, max_rank=RANKS[-1])
    if not torch.equal(rows, extract(samples, max_rank=RANKS[-1])):
        yield Failure("order of prompts", "the same samples give other rows the second time")
    others: dict[Check, Samples] = {
        "order of prompts": _reordered(samples),
        # a power of two: exact in floating point
        "scale": samples_of(
            4 * samples.harmful,
            4 * samples.harmless,
            is_paired=is_paired,
            categories=samples.categories,
        ),
    }
    for check, other in others.items():
        again = extract(other, max_rank=RANKS[-1])
        if again.shape != rows.shape:
            yield Failure(check, f"{len(again)} rows instead of {len(rows)}")
            continue
        # rows at right angles to δ get their sign from rounding, and an edit ignores it
        off = (again * rows).sum(1)
        off[1:] = off[1:].abs()
        worst = float((1 - off).abs().max())
        if not worst <= SAME:
            yield Failure(check, f"the rows turn, by 1 − cosine = {worst:.1e}")


def _reordered(samples: Samples) -> Samples:
    source = torch.Generator().manual_seed(0)
    harmful = torch.randperm(len(samples.harmful), generator=source)
    harmless = torch.randperm(len(samples.harmless), generator=source)
    return samples_of(
        samples.harmful[harmful],
        samples.harmless[harmful if samples.is_paired else harmless],
        is_paired=samples.is_paired,
        categories=tuple(samples.categories[int(row)] for row in harmful),
    )


def _error_failures(extract: Extractor, is_paired: bool) -> Iterator[Failure]:
    samples = planted(is_paired=is_paired).samples
    broken = samples.harmful.clone()
    broken[3, 5] = torch.nan
    endless = samples.harmful.clone()
    endless[3, 5] = torch.inf
    cases = {
        "equal classes": samples.harmless,
        "a NaN": broken,
        "an infinity": endless,
    }
    for what, harmful in cases.items():
        delta = harmful.to(torch.float64).mean(0) - samples.harmless.to(torch.float64).mean(0)
        given = replace(samples, harmful=harmful, delta=delta)
        try:
            rows = extract(given, max_rank=2)
        except DirectionError:
            continue
        except (ValueError, RuntimeError) as error:
            yield Failure("errors", f"{what}: {type(error).__name__} instead of a DirectionError")
        else:
            yield Failure("errors", f"{what} is not refused: {len(rows)} rows")
