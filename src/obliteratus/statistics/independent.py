"""The difference of two independent estimates, from their intervals alone."""

import math

from obliteratus.statistics.estimate import Estimate


def independent_difference(first: Estimate, second: Estimate) -> Estimate:
    """Estimate ``second`` − ``first``, two independent quantities; its null value is 0.

    Their intervals are recovered by squaring and adding (Zou and Donner 2008, MOVER): with values a
    and b and intervals (aₗ, aᵤ) and (bₗ, bᵤ), the ends of b − a lie √((b − bₗ)² + (aᵤ − a)²) below
    and √((bᵤ − b)² + (a − aₗ)²) above it. Of two proportions with Wilson intervals that is
    Newcombe's interval (1998, method 10 without its correlation). ``n`` counts the units of both.
    """
    (low, high), (other_low, other_high) = first.interval, second.interval
    value = second.value - first.value
    below = math.hypot(second.value - other_low, high - first.value)
    above = math.hypot(other_high - second.value, first.value - low)
    return Estimate(value, (value - below, value + above), n=first.n + second.n, null=0.0)
