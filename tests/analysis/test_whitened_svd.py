"""Planted axes are counted once whitened; noise, a rogue coordinate and shared content are not."""

from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.findings import Findings
from obliteratus.analysis.whitened_svd import (
    Inner,
    held_out_ratios,
    pictures,
    raw_spectrum,
    whitened_spectrum,
    whitened_svd,
)
from obliteratus.directions.samples import samples_at
from obliteratus.errors import MeasurementError
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.probe.activations import Activations
from obliteratus.testing.streams import activations_of

WIDTH, PAIRS = 32, 40


def stream(
    seed: int,
    *,
    shift: float = 3.5,
    extra: float = 3.5,
    rogue: float = 1.0,
    spread: float = 1.0,
    shared: float = 0.0,
    n: int = PAIRS,
    width: int = WIDTH,
    is_paired: bool = True,
) -> Activations:
    """Unit noise; harmful prompts are shifted along one axis and vary by ``extra`` along another.

    ``spread`` multiplies the noise of the harmful prompts, ``rogue`` one coordinate of all, and
    ``shared`` is the deviation of what both prompts of a pair have in common.
    """
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    content = shared * rng.normal(size=(n, 1)) * frame[2]
    harmful = spread * rng.normal(size=(n, width)) + content + shift * frame[0]
    harmful += extra * rng.normal(size=(n, 1)) * frame[1]
    harmless = rng.normal(size=(n, width)) + content
    for side in (harmful, harmless):
        side[:, 0] *= rogue
    return activations_of(
        {3: torch.tensor(harmful)[:, None]},
        {3: torch.tensor(harmless)[:, None]},
        is_paired=is_paired,
    )


def found(seed: int, **options: Any) -> Findings:
    return of(stream(seed, **options), seed)


def of(activations: Activations, seed: int = 0) -> Findings:
    return whitened_svd(activations, layer=3, position=-1, permutations=24, seed=seed)


def ranks(name: str, seeds: int = 100, **options: Any) -> list[float]:
    return [found(seed, **options).estimates[name].value for seed in range(seeds)]


def test_planted_axes_are_counted_though_one_coordinate_is_enormous() -> None:
    every = [found(seed, rogue=1e4) for seed in range(100)]
    assert sum(each.estimates["rank_after"].value == 2 for each in every) >= 80
    assert sum(each.estimates["rank_after"].verdict == "supported" for each in every) >= 80
    assert sum(each.estimates["rank_before"].value == 0 for each in every) >= 80


def test_without_a_contrast_nothing_stands_out() -> None:
    assert sum(rank > 0 for rank in ranks("rank_after", shift=0.0, extra=0.0)) <= 10


def test_shared_content_is_no_axis_and_neither_is_a_wider_class() -> None:
    assert sum(rank > 0 for rank in ranks("rank_after", 50, shift=0, extra=0, shared=10.0)) <= 5
    assert sum(rank > 0 for rank in ranks("rank_after", 50, shift=0, extra=0, spread=1.5)) <= 5


def test_one_axis_is_not_two() -> None:
    assert sum(rank > 1 for rank in ranks("rank_after", 50, extra=0.0)) <= 5


def test_fewer_prompts_than_coordinates_are_shrunk_and_counted() -> None:
    options: dict[str, Any] = {"width": 96, "shift": 5.0, "extra": 4.5}
    every = [found(seed, **options) for seed in range(20)]
    assert all(each.estimates["shrinkage"].value > 0.1 for each in every)
    assert sum(each.estimates["rank_after"].value == 2 for each in every) >= 16


@pytest.mark.parametrize("width", [12, 64])
def test_spectra_are_those_of_whole_matrices(width: int) -> None:
    samples = samples_at(stream(0, width=width, n=24), 3, -1)
    inner = Inner.of(samples)
    harmful, harmless = samples.harmful.double().numpy(), samples.harmless.double().numpy()
    both = np.concatenate([harmful, harmless])
    deviation = both.std(axis=0)
    for spectrum, scale in ((raw_spectrum, np.ones(width)), (whitened_spectrum, deviation)):
        first, second = harmful / scale, harmless / scale
        about = first - second.mean(axis=0)
        if spectrum is whitened_spectrum:
            covariance = np.cov(second, rowvar=False, bias=True)
            rho = inner.shrinkage
            covariance = (1 - rho) * covariance + rho * np.trace(covariance) / width * np.eye(width)
            about = about @ np.linalg.inv(np.linalg.cholesky(covariance)).T
        values = np.linalg.svd(about, compute_uv=False) ** 2
        expected = [values[k] / values[k:].mean() for k in range(8)]
        here = spectrum(inner, np.arange(24), 24 + np.arange(24))
        np.testing.assert_allclose(here, expected, rtol=1e-6)


def test_held_out_ratios_cover_the_truth() -> None:
    inside = 0
    for seed in range(100):  # without a difference the ratio is 1 along every axis
        inner = Inner.of(samples_at(stream(seed, n=64, shift=0.0, extra=0.0), 3, -1))
        rng = np.random.default_rng(seed)
        _, low, high = held_out_ratios(inner, (64, 64), True, rng)
        inside += low[0] <= 1 <= high[0]
    assert inside >= 90


def test_held_out_ratios_are_those_that_were_planted() -> None:
    every = [found(seed, n=400, shift=5.0, extra=2.5) for seed in range(3)]
    ratio = np.mean([each.arrays["ratio"][:3] for each in every], axis=0)
    assert ratio[0] == pytest.approx(1 + 5.0**2, rel=0.25)
    assert ratio[1] == pytest.approx(1 + 2.5**2, rel=0.25)
    assert ratio[2] == pytest.approx(1, abs=0.2)


def test_few_prompts_and_equal_ones_are_refused() -> None:
    with pytest.raises(MeasurementError, match="at least 16 prompts of each class; there are 15"):
        found(0, n=15)
    same: dict[Any, torch.Tensor] = {3: torch.ones(20, 1, WIDTH)}
    with pytest.raises(MeasurementError, match="all prompts have the same stream at layer 3"):
        of(activations_of(same, same))


def test_it_is_drawn() -> None:
    shown = pictures(found(0, is_paired=False))
    assert [each.title for each in shown] == [
        "The spectrum of the contrast",
        "What the axes are worth on other prompts",
    ]
    assert all(drawn(each).axes and interactive(each).data for each in shown)
