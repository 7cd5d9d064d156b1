"""Exact tests of paired yes/no outcomes and the interval of their difference."""

import math
from collections.abc import Sequence

from scipy import stats

from obliteratus.errors import MeasurementError
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import CONFIDENCE, wilson


def mcnemar(
    before: Sequence[bool], after: Sequence[bool], *, confidence: float = CONFIDENCE
) -> Comparison:
    """Test whether as many units turned from yes to no as from no to yes.

    The exact test (McNemar 1947): under the null hypothesis a discordant unit is as likely to have
    turned one way as the other.
    ``effect`` is the change of the proportion, after − before, with Newcombe's square-and-add
    interval for paired proportions (1998, method 10); its null is 0.

    Raises:
        MeasurementError: no units, or a different number of them before and after.
    """
    if len(before) != len(after) or not before:
        raise MeasurementError(
            f"a paired test needs the same units twice; got {len(before)} before and "
            f"{len(after)} after. Measure both models on the same prompts."
        )
    both = sum(b and a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    neither = len(before) - both - gained - lost
    turned = gained + lost
    p_value = float(stats.binomtest(gained, turned, 0.5).pvalue) if turned else 1.0
    interval = _newcombe(both, gained, lost, neither, confidence)
    effect = Estimate((gained - lost) / len(before), interval, n=len(before), null=0.0)
    return Comparison(effect, p_value, "exact McNemar")


def _newcombe(
    both: int, gained: int, lost: int, neither: int, confidence: float
) -> tuple[float, float]:
    """Combine the Wilson intervals of both margins, allowing for their correlation φ."""
    n = both + gained + lost + neither
    after, before = (
        wilson(both + gained, n, confidence=confidence),
        wilson(both + lost, n, confidence=confidence),
    )
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    phi = 0.0
    if margins:
        surplus = both * neither - gained * lost
        # Newcombe's continuity correction of a positive correlation.
        surplus = max(surplus - n / 2, 0.0) if surplus > 0 else float(surplus)
        phi = surplus / math.sqrt(margins)
    difference = after.value - before.value
    below = _root(after.value - after.interval[0], before.interval[1] - before.value, phi)
    above = _root(after.interval[1] - after.value, before.value - before.interval[0], phi)
    return max(-1.0, difference - below), min(1.0, difference + above)


def _root(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))
