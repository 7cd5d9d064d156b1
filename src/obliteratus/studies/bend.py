"""Where to measure a curve next: where it bends beyond noise, then where it is steep."""

import bisect
import itertools
from collections.abc import Mapping, Sequence

from obliteratus.statistics.estimate import Estimate

FINEST = 40  # parts of the range: points closer than that differ by less than noise
FIRST = 7  # points on an even grid before anything is known of the curve


def first_points(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return where to begin: an even grid of at most ``count`` points with both ends and 0.

    A point of the grid next to 0 becomes 0, which costs nothing: it is the original.
    """
    grid = [low + (high - low) * step / (count - 1) for step in range(count)]
    if low < 0 < high:
        nearest = min(range(1, count - 1), key=lambda place: abs(grid[place]))
        grid[nearest] = 0.0
    return tuple(round(each, 6) for each in grid)


def next_points(curves: Sequence[Mapping[float, Estimate]], count: int) -> tuple[float, ...]:
    """Return at most ``count`` strengths to measure next; none where the grid is fine enough.

    A curve bends at a point that lies off the line between its neighbours by more than half of its
    own interval. Gaps beside the sharpest bends (as a share of the curve's range) are halved, of
    two beside one bend the wider one first. Where no curve bends beyond noise, the gaps over which
    a curve changes most are.
    """
    places = sorted(curves[0])
    least = (places[-1] - places[0]) / FINEST
    wide = [gap for gap in itertools.pairwise(places) if gap[1] - gap[0] >= 2 * least]
    bends = {gap: max(_bend_beside(curve, places, gap) for curve in curves) for gap in wide}
    steps = {gap: max(_step(curve, gap) for curve in curves) for gap in wide}
    ordered = sorted(wide, key=lambda gap: (bends[gap], steps[gap], gap[1] - gap[0]), reverse=True)
    return tuple(round((low + high) / 2, 6) for low, high in ordered[:count])


def _bend_beside(
    curve: Mapping[float, Estimate], places: Sequence[float], gap: tuple[float, float]
) -> float:
    """Return the sharper bend at the two ends of ``gap``, times its share of the two gaps there."""
    found = 0.0
    for place in gap:
        at = bisect.bisect_left(places, place)
        if 0 < at < len(places) - 1:
            left, right = places[at - 1], places[at + 1]
            share = (gap[1] - gap[0]) / (right - left)
            found = max(found, share * _bend(curve, left, place, right))
    return found


def _bend(curve: Mapping[float, Estimate], left: float, place: float, right: float) -> float:
    here, before, after = curve[place], curve[left].value, curve[right].value
    on_the_line = before + (after - before) * (place - left) / (right - left)
    off = abs(here.value - on_the_line)
    noise = (here.interval[1] - here.interval[0]) / 2
    span = _span(curve)
    return off / span if span > 0 and off > noise else 0.0


def _step(curve: Mapping[float, Estimate], gap: tuple[float, float]) -> float:
    span = _span(curve)
    return abs(curve[gap[1]].value - curve[gap[0]].value) / span if span > 0 else 0.0


def _span(curve: Mapping[float, Estimate]) -> float:
    values = [each.value for each in curve.values()]
    return max(values) - min(values)
