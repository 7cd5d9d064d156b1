"""Reliability is that of the row that an extractor returns, and of the filter that it reads by."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest
from torch import Tensor

from obliteratus.directions.delta_reliability import delta_reliability
from obliteratus.directions.difference_of_means import difference_of_means
from obliteratus.directions.extraction import extraction
from obliteratus.directions.paired_svd import paired_svd
from obliteratus.directions.reliability import REPLICATES, SHUFFLES, SPLITS, reliability
from obliteratus.directions.samples import EXTRACTORS, Samples
from obliteratus.errors import DirectionError
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.planted_samples import ROGUE, planted

NAMES = ("split_half_cosine", "bootstrap_angle", "permutation_p", "top_coordinate_share")
PAIRED = {name: name not in ("som",) for name in EXTRACTORS}
"""Prompts of a pair share a long mean, which is a documented limit of ``som``."""


def trusted(name: str, samples: Samples, seed: int = 0) -> dict[str, Estimate]:
    return reliability(samples, EXTRACTORS[name], seed=seed, read=extraction(name).read)


@pytest.mark.parametrize("name", list(EXTRACTORS))
def test_a_planted_direction_is_found_again_in_halves_and_not_by_shuffled_labels(
    name: str,
) -> None:
    found = trusted(name, planted(n=96, is_paired=PAIRED[name]).samples)
    assert set(found) == {*NAMES} | (
        {f"filter_{each}" for each in NAMES} if name == "leace" else set()
    )
    assert found["split_half_cosine"].value > (0.5 if name == "som" else 0.85)
    assert found["permutation_p"].value <= 0.025
    assert found["permutation_p"].verdict == "supported"
    assert found["bootstrap_angle"].value < (60 if name == "som" else 25)


@pytest.mark.parametrize("name", list(EXTRACTORS))
def test_without_a_difference_halves_disagree_and_p_is_not_small(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obliteratus.directions.reliability.SPLITS", 6)
    monkeypatch.setattr("obliteratus.directions.reliability.REPLICATES", 4)
    found = [
        trusted(name, planted(seed, n=24, shift=0.0, is_paired=PAIRED[name]).samples, seed)
        for seed in range(4)
    ]
    assert sum(each["permutation_p"].value <= 0.05 for each in found) <= 1
    cosines = [each["split_half_cosine"].value for each in found]
    assert abs(np.mean(cosines)) < 0.25
    assert min(each["bootstrap_angle"].value for each in found) > 15


def test_p_of_extracting_again_is_even_where_there_is_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("obliteratus.directions.reliability.SPLITS", 2)
    monkeypatch.setattr("obliteratus.directions.reliability.REPLICATES", 2)
    p_values = [
        trusted("winsorised_norms", planted(seed, n=16, shift=0.0).samples, seed)[
            "permutation_p"
        ].value
        for seed in range(40)
    ]
    assert kstest(p_values, "uniform").pvalue > 1e-3
    assert 0.35 < np.mean(p_values) < 0.65


def test_a_row_that_is_the_mean_difference_is_resampled_in_closed_form() -> None:
    samples = planted(n=48).samples
    assert reliability(samples, difference_of_means, seed=3) == delta_reliability(samples, seed=3)


def test_a_captured_svd_is_not_as_reliable_as_the_mean_difference() -> None:
    """Its row is the rogue coordinate, on whose side the classes happen to lie."""
    samples = planted(n=128, rogue=4 * ROGUE).samples
    captured = reliability(samples, paired_svd, seed=0)
    assert captured["top_coordinate_share"].value > 0.99
    assert captured["split_half_cosine"].verdict == "undetermined"
    assert captured["permutation_p"].verdict == "not_supported"
    delta = delta_reliability(samples, seed=0)
    assert delta["top_coordinate_share"].value < 0.9


def test_the_filter_of_leace_fits_noise_where_prompts_are_few_and_its_pattern_does_not() -> None:
    few = trusted("leace", planted(n=20).samples)
    assert few["split_half_cosine"].value > few["filter_split_half_cosine"].value + 0.2
    many = trusted("leace", planted(n=400).samples)
    assert many["filter_split_half_cosine"].value > 0.8
    assert many["filter_permutation_p"].verdict == "supported"


def test_a_row_beside_the_difference_is_not_supported_by_the_difference() -> None:
    """The classes are far apart, but not along what this extractor returns, whatever the labels."""
    each = planted(n=64)

    def beside(samples: Samples, *, max_rank: int = 1) -> Tensor:
        del max_rank
        row = each.common[None]
        return row if float(row[0] @ samples.delta) >= 0 else -row

    found = reliability(each.samples, beside, seed=0)
    assert found["split_half_cosine"].verdict == "undetermined"
    assert found["permutation_p"].value > 0.05
    assert delta_reliability(each.samples, seed=0)["permutation_p"].value < 0.01


def test_the_extractions_are_as_many_as_said() -> None:
    calls: list[int] = []

    def counted(samples: Samples, *, max_rank: int = 1) -> Tensor:
        calls.append(max_rank)
        return paired_svd(samples, max_rank=max_rank)

    reliability(planted(n=16).samples, counted, seed=0)
    assert len(calls) == 2 + 4 * SPLITS + REPLICATES + SHUFFLES
    assert set(calls) == {1}


def test_resamples_keep_pairs_and_deal_unpaired_prompts_anew() -> None:
    """What both prompts of a pair share cancels in every resample, or cosines would fall."""
    shared = planted(n=64, shared=60.0).samples
    apart = replace(shared, is_paired=False)
    paired = trusted("winsorised_norms", shared)["split_half_cosine"]
    assert paired.value > trusted("winsorised_norms", apart)["split_half_cosine"].value + 0.05


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(DirectionError, match="at least 4 prompts of each class, not 3"):
        reliability(planted(n=3).samples, paired_svd, seed=0)


def test_the_same_seed_gives_the_same_estimates() -> None:
    samples = planted(n=24).samples
    one, same, other = (reliability(samples, paired_svd, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
