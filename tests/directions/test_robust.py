"""Centres that outlying prompts do not carry away: the geometric median and winsorised means."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from obliteratus.directions.difference_of_means import difference_of_means
from obliteratus.directions.geometric_median import geometric_median, geometric_median_difference
from obliteratus.directions.samples import EXTRACTORS, Samples
from obliteratus.directions.winsorised_coordinates import winsorised_coordinates
from obliteratus.directions.winsorised_norms import winsorised_norms
from obliteratus.errors import DirectionError

WIDTH = 32
ROBUST = ["geometric_median", "winsorised_coordinates", "winsorised_norms"]


def of(harmful: Tensor, harmless: Tensor, *, is_paired: bool = True) -> Samples:
    delta = harmful.double().mean(0) - harmless.double().mean(0)
    return Samples(delta, harmful, harmless, is_paired)


def planted(seed: int = 0, n: int = 200) -> tuple[Samples, Tensor]:
    source = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=source), dim=0)
    harmless = torch.randn(n, WIDTH, generator=source)
    harmful = torch.randn(n, WIDTH, generator=source) + 3 * direction
    return of(harmful, harmless), direction.double()


def with_outlier(samples: Samples, size: float = 1e4) -> Samples:
    """Return ``samples`` with one harmless prompt far out, half along a coordinate."""
    harmless = samples.harmless.clone()
    harmless[3] += size * torch.nn.functional.normalize(torch.ones(WIDTH), dim=0)
    harmless[3, 5] += size
    return of(samples.harmful, harmless, is_paired=samples.is_paired)


@pytest.mark.parametrize("name", ROBUST)
def test_one_wild_prompt_carries_the_mean_away_but_not_this(name: str) -> None:
    samples, direction = planted()
    wild = with_outlier(samples)
    assert abs(float(difference_of_means(wild)[0] @ direction)) < 0.5
    assert abs(float(EXTRACTORS[name](wild)[0] @ direction)) > 0.9


@pytest.mark.parametrize("name", ROBUST)
def test_without_outliers_the_difference_in_means_is_found(name: str) -> None:
    samples, _ = planted()
    assert float(EXTRACTORS[name](samples)[0] @ difference_of_means(samples)[0]) > 0.995


@pytest.mark.parametrize("name", ROBUST)
def test_further_rows_are_the_axes_of_the_pair_differences_around_row_zero(name: str) -> None:
    samples, _ = planted()
    rows = EXTRACTORS[name](samples, max_rank=4)
    assert float((rows @ rows.T - torch.eye(4)).abs().max()) < 1e-12
    assert torch.allclose(rows[0], EXTRACTORS[name](samples)[0])
    spent = [float((samples.differences @ row).square().sum()) for row in rows[1:]]
    assert all(first > second for first, second in pairwise(spent))


def test_the_median_makes_the_sum_of_distances_smallest() -> None:
    source = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 6, generator=source, dtype=torch.float64).exp()
    median = geometric_median(rows)
    least = float((rows - median).norm(dim=1).sum())
    for _ in range(100):
        step = 1e-3 * torch.randn(6, generator=source, dtype=torch.float64)
        assert float((rows - median - step).norm(dim=1).sum()) > least
    away = rows - median
    assert float((away / away.norm(dim=1, keepdim=True)).mean(0).norm()) <= 1e-10


def test_a_row_that_is_the_median_is_returned_exactly() -> None:
    cross = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 2], [0, -2], [9, 9]]).double()
    assert torch.equal(geometric_median(cross), cross[0])
    heavy = torch.cat([cross[5:].expand(6, 2), cross[:5]])
    assert torch.equal(geometric_median(heavy), cross[5])


def test_the_iteration_leaves_a_row_that_is_not_the_median() -> None:
    """The mean of these rows is the first of them, where Weiszfeld's weights are infinite."""
    rows = torch.tensor([[0.0], [-3.0], [1.0], [1.0], [1.0]]).double()
    assert geometric_median(rows).item() == pytest.approx(1.0, abs=1e-9)
    plane = torch.tensor([[0.0, 0], [-4, 0.5], [-4, -0.5], [2, 1], [2, -1], [4, 0]]).double()
    assert torch.equal(plane.mean(0), plane[0])
    away = plane - geometric_median(plane)
    units = away / away.norm(dim=1, keepdim=True).clamp_min(1e-300)
    assert float(units.sum(0).norm()) <= 1 + 1e-9


def test_at_quantile_one_nothing_is_clipped() -> None:
    samples = with_outlier(planted()[0])
    exact = difference_of_means(samples)
    for extract in (winsorised_coordinates, winsorised_norms):
        assert torch.allclose(extract(samples, quantile=1.0), exact)
        assert not torch.allclose(extract(samples, quantile=0.9), exact, atol=0.1)


def test_norms_are_shortened_along_themselves_and_coordinates_are_clipped_alone() -> None:
    """Only the two kinds' own invariance tells them apart: a rotation of the stream."""
    samples = with_outlier(planted()[0], size=50)
    source = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=source)).Q
    turned = of(samples.harmful @ turn.T, samples.harmless @ turn.T)
    norms = winsorised_norms(samples, quantile=0.9)[0] @ turn.double().T
    assert torch.allclose(winsorised_norms(turned, quantile=0.9)[0], norms, atol=1e-5)
    coordinates = winsorised_coordinates(samples, quantile=0.9)[0] @ turn.double().T
    other = winsorised_coordinates(turned, quantile=0.9)[0]
    assert not torch.allclose(other, coordinates, atol=1e-3)


def test_every_coordinate_is_clipped_at_its_own_quantiles() -> None:
    """So that a unit of its own for each coordinate only changes the units of the result."""
    samples = with_outlier(planted()[0], size=50)
    units = torch.logspace(-3, 3, WIDTH, base=2)
    other = of(samples.harmful * units, samples.harmless * units)
    row = winsorised_coordinates(samples, quantile=0.9)[0] * units
    again = winsorised_coordinates(other, quantile=0.9)[0]
    assert torch.allclose(again, row / row.norm(), atol=1e-6)
    plain = difference_of_means(samples)[0] * units
    assert not torch.allclose(again, plain / plain.norm(), atol=1e-2)


def test_a_median_needs_finite_numbers_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = planted()
    broken = replace(samples, harmful=samples.harmful / 0)
    with pytest.raises(DirectionError, match="not finite, so they have no median"):
        geometric_median_difference(broken)
    monkeypatch.setattr("obliteratus.directions.geometric_median.MOST_STEPS", 1)
    with pytest.raises(DirectionError, match="did not converge in 1 steps: the mean unit vector"):
        geometric_median_difference(with_outlier(samples))
