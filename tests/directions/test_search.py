"""The search keeps a larger edit only where it lowers refusal beyond noise within the KL gate."""

from collections.abc import Callable

import numpy as np

from obliteratus.directions.score import Effect
from obliteratus.directions.search import search

PROMPTS = 32


def effects(log_odds: dict[float, float], kl: dict[float, float]) -> Callable[[float], Effect]:
    """Effects with the given means; prompts differ by far more than the values do."""
    base = np.random.default_rng(0).normal(size=PROMPTS) * 3

    def effect(value: float) -> Effect:
        noise = np.random.default_rng(int(value * 100)).normal(size=PROMPTS) * 0.05
        return Effect(base + log_odds[value] + noise, np.full(PROMPTS, float(kl.get(value, 0.01))))

    return effect


def tried(effect_of: Callable[[float], Effect]) -> tuple[float, list[bool]]:
    best, trials = search((1.0, 2.0, 3.0), effect_of, task="rank", max_kl=0.1, seed=0)
    return best.value, [trial.is_kept for trial in trials]


def test_a_fall_of_the_log_odds_beyond_noise_is_kept() -> None:
    assert tried(effects({1: 0, 2: -0.2, 3: -0.4}, {})) == (3, [True, True, True])


def test_a_fall_within_noise_is_not_kept() -> None:
    assert tried(effects({1: 0, 2: -0.001, 3: -0.001}, {}))[0] == 1


def test_a_fall_beyond_the_kl_gate_is_not_kept() -> None:
    assert tried(effects({1: 0, 2: -1, 3: -2}, {2: 0.11, 3: 0.11}))[0] == 1


def test_nothing_is_tried_beyond_the_first_failure() -> None:
    assert tried(effects({1: 0, 2: 0.5, 3: -0.5}, {})) == (1, [True, False])


def test_a_gain_is_against_the_trial_kept_before() -> None:
    _, trials = search(
        (1.0, 2.0, 3.0),
        effects({1: 0, 2: -0.2, 3: -0.3}, {}),
        task="rank",
        max_kl=0.1,
        seed=0,
    )
    gains = [trial.gain.value for trial in trials if trial.gain is not None]
    np.testing.assert_allclose(gains, [-0.2, -0.1], atol=0.05)


def test_the_first_is_kept_whatever_it_does() -> None:
    assert tried(effects({1: 0, 2: 1, 3: 1}, {1: 9, 2: 9, 3: 9}))[0] == 1
