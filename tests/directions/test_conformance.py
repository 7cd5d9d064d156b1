"""Every registered extractor keeps the contract, up to its documented limits, and breaches show."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from obliteratus.directions.delta_reliability import delta_reliability
from obliteratus.directions.difference_of_means import difference_of_means
from obliteratus.directions.paired_svd import paired_svd
from obliteratus.directions.samples import EXTRACTORS, Samples
from obliteratus.errors import DirectionError
from obliteratus.testing.extractors import LIMITS, Check, angle_to, failures, limits
from obliteratus.testing.planted_samples import PROMPTS, largest_angle, planted

PAIRS_ONLY = {"category_svd"}
EFFICIENCY = {"som": 0.1}
"""A neuron of the default map stands for a sixteenth of the harmful prompts: 2 / (16 + 1)."""


CASES = [
    (name, is_paired)
    for name in EXTRACTORS
    for is_paired in (True, False)
    if is_paired or name not in PAIRS_ONLY
]


@pytest.mark.parametrize(("name", "is_paired"), CASES)
def test_every_extractor_keeps_the_contract_up_to_its_limits(name: str, is_paired: bool) -> None:
    found = list(
        failures(EXTRACTORS[name], is_paired=is_paired, efficiency=EFFICIENCY.get(name, 0.8))
    )
    assert {each.check for each in found} == limits(name, is_paired=is_paired), found


@pytest.mark.parametrize("name", list(PAIRS_ONLY))
def test_what_needs_pairs_refuses_a_set_without(name: str) -> None:
    with pytest.raises(DirectionError, match="this set is not paired"):
        EXTRACTORS[name](planted(is_paired=False).samples, max_rank=1)


def test_a_limit_is_of_an_extractor_that_exists_and_says_what_to_use() -> None:
    for limit in LIMITS:
        assert limit.extractor in EXTRACTORS
        assert "Use " in limit.reason


def harmful_mean(samples: Samples, *, max_rank: int = 1) -> Tensor:
    del max_rank
    mean = samples.harmful.double().mean(0)
    return (mean / mean.norm())[None]


def single_precision(samples: Samples, *, max_rank: int = 1) -> Tensor:
    return difference_of_means(samples, max_rank=max_rank).float()


def doubled(samples: Samples, *, max_rank: int = 1) -> Tensor:
    return 2 * difference_of_means(samples, max_rank=max_rank)


def turned_round(samples: Samples, *, max_rank: int = 1) -> Tensor:
    return -difference_of_means(samples, max_rank=max_rank)


def greedy(samples: Samples, *, max_rank: int = 1) -> Tensor:
    return difference_of_means(samples, max_rank=max_rank + 1)


def other_first_row(samples: Samples, *, max_rank: int = 1) -> Tensor:
    rows = difference_of_means(samples, max_rank=3)
    return rows[:1] if max_rank == 1 else (rows[0] + rows[1])[None] / 2**0.5


def first_half(samples: Samples, *, max_rank: int = 1) -> Tensor:
    return difference_of_means(samples.subset(list(range(len(samples.harmful) // 2))))


def at_random(samples: Samples, *, max_rank: int = 1) -> Tensor:
    row = difference_of_means(samples) + 0.01 * torch.randn(1, len(samples.delta)).double()
    return row / row.norm()


def shifted(samples: Samples, *, max_rank: int = 1) -> Tensor:
    row = samples.delta + 0.2
    return (row / row.norm())[None]


def trusting(samples: Samples, *, max_rank: int = 1) -> Tensor:
    return samples.delta[None] / samples.delta.norm()


BROKEN: dict[Callable[..., Tensor], set[Check]] = {
    harmful_mean: {"planted", "common component", "rogue coordinate", "null", "errors"},
    single_precision: {"basis"},
    doubled: {"basis"},
    turned_round: {"planted", "common component", "rogue coordinate", "basis"},
    greedy: {"max_rank"},
    other_first_row: {"max_rank"},
    first_half: {"order of prompts"},
    at_random: {"order of prompts", "max_rank", "scale"},
    shifted: {"scale"},
    trusting: {"errors"},
}


@pytest.mark.parametrize("broken", list(BROKEN), ids=lambda each: each.__name__)
def test_what_is_broken_shows(broken: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    found = list(failures(broken))
    assert {each.check for each in found} >= BROKEN[broken], found


def test_a_mean_makes_use_of_all_prompts() -> None:
    assert not list(failures(difference_of_means, efficiency=1.0))


def test_the_bound_on_the_angle_is_that_of_the_sampling_noise() -> None:
    bound = largest_angle(n=PROMPTS)
    angles = [
        angle_to(difference_of_means(each.samples), each.direction)
        for each in (planted(seed) for seed in range(300))
    ]
    assert bound / 2 < max(angles) <= bound
    few = [
        angle_to(difference_of_means(each.samples), each.direction)
        for each in (planted(seed, n=PROMPTS // 8) for seed in range(100))
    ]
    assert max(few) > bound
    assert max(few) <= largest_angle(n=PROMPTS, efficiency=1 / 8)


def test_a_rogue_coordinate_is_what_captures_the_paired_svd() -> None:
    each = planted(rogue=12.0, n=1024)
    row = paired_svd(each.samples)[0]
    assert abs(float(row[0])) > 0.99  # the rogue coordinate is the first
    quiet = planted(rogue=1.0, n=1024)
    assert angle_to(paired_svd(quiet.samples), quiet.direction) < 10


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
def test_under_the_null_p_is_uniform_and_no_direction_is_supported(is_paired: bool) -> None:
    found = [
        delta_reliability(planted(seed, n=48, shift=0.0, is_paired=is_paired).samples, seed=seed)
        for seed in range(40)
    ]
    assert kstest([each["permutation_p"].value for each in found], "uniform").pvalue > 1e-3
    assert sum(each["split_half_cosine"].verdict == "supported" for each in found) <= 4
    real = delta_reliability(planted(n=48, is_paired=is_paired).samples, seed=0)
    assert real["permutation_p"].value < 0.01
    assert real["split_half_cosine"].verdict == "supported"
