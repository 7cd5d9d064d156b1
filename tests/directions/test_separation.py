"""The separation of a layer is that of the classes, not of the noise, the width or the scale."""

import numpy as np
import pytest
import torch

from obliteratus.directions.samples import Samples
from obliteratus.directions.separation import FEWEST, separation, separation_test
from obliteratus.errors import DirectionError
from obliteratus.testing.planted_samples import samples_of

WIDTH = 96
PROMPTS = 32
"""A third of the width."""
SPREAD = torch.linspace(1, 6, WIDTH, dtype=torch.float64)


def drawn(
    seed: int, apart: float, *, n: int = PROMPTS, is_paired: bool = True, shared: float = 0.0
) -> Samples:
    """Samples with D = ``apart`` in anisotropic noise, around a mean of length 1000."""
    source = torch.Generator().manual_seed(seed)
    row = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    row = row / row.norm()
    shift = apart * (row * SPREAD).norm() * row
    noise = torch.randn(2, n, WIDTH, generator=source, dtype=torch.float64) * SPREAD
    both = shared * torch.randn(n, 1, generator=source, dtype=torch.float64) * torch.ones(WIDTH)
    middle = 100 + both
    return samples_of(middle + noise[0] + shift, middle + noise[1], is_paired=is_paired)


def plug_in(samples: Samples) -> float:
    """d' of the prompts along the δ̂ of the same prompts."""
    first, second = (side.double() @ samples.delta for side in (samples.harmful, samples.harmless))
    return float((first.mean() - second.mean()) / ((first.var() + second.var()) / 2).sqrt())


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
@pytest.mark.parametrize("apart", [3.0, 5.0])
def test_it_is_unbiased_with_fewer_prompts_than_width_in_anisotropic_noise(
    apart: float, is_paired: bool
) -> None:
    sets = [drawn(seed, apart, is_paired=is_paired) for seed in range(40)]
    found = [separation(each, seed=0).value for each in sets]
    assert np.mean(found) == pytest.approx(apart, rel=0.1)
    assert np.mean([plug_in(each) for each in sets]) > np.mean(found)


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
def test_without_a_difference_it_is_zero_on_average_where_the_plug_in_value_is_large(
    is_paired: bool,
) -> None:
    sets = [drawn(seed, 0.0, is_paired=is_paired) for seed in range(40)]
    found = np.array([separation(each, seed=0).value for each in sets])
    assert abs(found.mean()) < 3 * found.std() / len(found) ** 0.5
    assert abs(found.mean()) < 0.25
    assert min(plug_in(each) for each in sets) > 1


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    for apart in (0.0, 3.0):
        estimates = [separation(drawn(seed, apart, n=64), seed=0) for seed in range(30)]
        covered = [low <= apart <= high for low, high in (each.interval for each in estimates)]
        assert np.mean(covered) >= 0.9


def test_more_prompts_narrow_the_interval_but_do_not_move_it() -> None:
    few, many = (separation(drawn(0, 3.0, n=n), seed=0) for n in (64, 1024))
    assert np.ptp(many.interval) < np.ptp(few.interval) / 2
    assert many.interval[0] <= 3.0 <= many.interval[1]


def test_what_the_prompts_of_a_pair_share_is_within_class_spread_and_does_not_bias() -> None:
    """Shared variance is not independent noise of δ̂: it must cancel in it and count in Σ."""
    row = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    row = row / row.norm()
    within = ((row * SPREAD).square().sum() + (5 * row.sum()) ** 2).sqrt()
    truth = float(3 * (row * SPREAD).norm() / within)
    found = [separation(drawn(seed, 3.0, n=128, shared=5.0), seed=0).value for seed in range(20)]
    assert truth < 2.5
    assert np.mean(found) == pytest.approx(truth, rel=0.1)


def test_the_length_of_the_difference_plays_no_part() -> None:
    samples = drawn(0, 3.0)
    long = samples_of(50 * samples.harmful, 50 * samples.harmless)
    assert separation(long, seed=0).value == pytest.approx(separation(samples, seed=0).value)
    far, near = drawn(0, 5.0, n=128), drawn(0, 2.0, n=128)
    stretched = samples_of(10 * near.harmful, 10 * near.harmless)
    assert stretched.delta.norm() > far.delta.norm()
    assert separation(far, seed=0).interval[0] > separation(stretched, seed=0).interval[1]


def test_equal_prompts_at_the_embedding_are_not_apart() -> None:
    same = torch.ones(16, WIDTH)
    assert separation(samples_of(same, same), seed=0).value == 0


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(DirectionError, match=f"at least {FEWEST} prompts of each class, not 7"):
        separation(drawn(0, 3.0, n=7), seed=0)
    assert np.isfinite(separation(drawn(0, 3.0, n=FEWEST), seed=0).value)


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
def test_the_p_value_is_small_where_there_is_a_difference_and_even_where_not(
    is_paired: bool,
) -> None:
    none = [
        separation_test(drawn(seed, 0.0, is_paired=is_paired), shuffles=99, seed=seed).p_value
        for seed in range(40)
    ]
    assert sum(p <= 0.05 for p in none) <= 6
    assert 0.35 < np.mean(none) < 0.65
    real = separation_test(drawn(0, 3.0, is_paired=is_paired), shuffles=999, seed=0)
    assert real.p_value == 1 / 1000
