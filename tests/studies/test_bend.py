"""Points go where a curve bends beyond noise."""

import numpy as np
import pytest

from obliteratus.statistics.estimate import Estimate
from obliteratus.studies.bend import FINEST, first_points, next_points


def curve(function, places, noise=0.0):
    return {
        x: Estimate(function(x), (function(x) - noise, function(x) + noise), n=9) for x in places
    }


def swept(function, low, high, count, noise=0.0, together=1):
    places = list(first_points(low, high, 7))
    while len(places) < count:
        following = next_points([curve(function, places, noise)], together)
        if not following:
            break
        places.extend(following)
    return sorted(places)


@pytest.mark.parametrize(
    ("low", "high", "count"), [(-1.0, 2.0, 7), (-1.0, 2.0, 4), (0.0, 1.0, 7), (-3.0, 1.0, 5)]
)
def test_the_first_points_are_even_with_both_ends_and_zero(low, high, count):
    points = first_points(low, high, count)
    assert len(points) == count
    assert points[0] == low
    assert points[-1] == high
    assert 0 in points
    assert list(points) == sorted(points)


def test_points_gather_at_a_step():
    def step(x):
        return float(1 / (1 + np.exp(-40 * (x - 0.62))))

    points = swept(step, -1.0, 2.0, 13)
    near = [each for each in points if abs(each - 0.62) <= 0.3]
    even = [each for each in np.linspace(-1, 2, 13) if abs(each - 0.62) <= 0.3]
    assert len(near) >= 2 * len(even)


def test_a_bend_within_noise_attracts_nothing():
    def kink(x):
        return abs(x - 0.5)

    certain = swept(kink, -1.0, 2.0, 9)
    doubtful = swept(kink, -1.0, 2.0, 9, noise=5.0)
    assert min(abs(each - 0.5) for each in certain[1:-1]) < 0.3
    assert certain != doubtful


def test_a_line_is_filled_in_evenly():
    points = swept(lambda x: x, 0.0, 1.0, 13)
    gaps = np.diff(points)
    assert max(gaps) <= 2.01 * min(gaps)


def test_a_flat_curve_is_filled_in_evenly():
    points = swept(lambda _x: 0.0, 0.0, 1.0, 13)
    gaps = np.diff(points)
    assert max(gaps) <= 2.01 * min(gaps)


def test_there_is_an_end_to_it():
    points = swept(lambda x: x * x, 0.0, 1.0, 1000)
    assert len(points) <= FINEST + 1


def test_the_sharper_of_two_curves_decides():
    places = first_points(0.0, 6.0, 7)
    flat = curve(lambda x: x, places)
    bent = curve(lambda x: float(x > 4), places)
    assert next_points([flat, bent], 1)[0] in (3.5, 4.5)


@pytest.mark.parametrize("together", [2, 3])
def test_points_that_are_chosen_together_gather_at_a_step_as_well(together):
    def step(x):
        return float(1 / (1 + np.exp(-40 * (x - 0.62))))

    points = swept(step, -1.0, 2.0, 13, together=together)
    near = [each for each in points if abs(each - 0.62) <= 0.3]
    even = [each for each in np.linspace(-1, 2, 13) if abs(each - 0.62) <= 0.3]
    assert len(near) >= 2 * len(even)


def test_points_that_are_chosen_together_differ():
    places = first_points(0.0, 6.0, 7)
    chosen = next_points([curve(lambda x: float(x > 4), places)], 3)
    assert len(set(chosen)) == len(chosen) == 3
    assert not set(chosen) & set(places)
