"""Every number has its null; an ablation that does something shows, and an unread one does not."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from obliteratus.analysis.evaluation_suite import (
    behaviour_changes,
    evaluation_suite,
    pictures,
    stream_changes,
)
from obliteratus.analysis.geometry_change import debiased_cka, effective_rank, independent_rank
from obliteratus.analysis.suite import Suite
from obliteratus.errors import MeasurementError
from obliteratus.pictures.drawn import drawn
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.suite_draws import DRAWN, POOL, some_of_suite, suite_pool

FRESH = 9000
"""The seed of models and prompts that nothing was developed on."""


@cache
def pool(variant: str, what: str = "refusal") -> Suite:
    return suite_pool(variant, is_inert=what == "inert", seed=FRESH)


@cache
def behaviour(variant: str, what: str = "refusal") -> list[dict[str, Estimate]]:
    suite = pool(variant, what)
    return [behaviour_changes(some_of_suite(suite, seed), seed=seed) for seed in range(100)]


def times(seen: list[dict[str, Estimate]], name: str) -> int:
    return sum(each[name].verdict == "supported" for each in seen)


def test_the_fall_of_refusal_is_found_and_nothing_beside_it() -> None:
    seen = behaviour("linear")
    assert times(seen, "refusal_fall") >= 80
    assert np.mean([each["refusal_fall"].value for each in seen]) == pytest.approx(12, abs=1.5)
    assert times(seen, "first_token_kl") <= 10
    assert times(seen, "nll_rise") <= 10


def test_an_unread_direction_changes_no_behaviour() -> None:
    seen = behaviour("null", "inert")
    for name in ("refusal_fall", "first_token_kl", "nll_rise"):
        assert times(seen, name) <= 10


def test_a_long_unread_direction_changes_the_rank_of_the_stream_and_not_refusal() -> None:
    """Where triggers separate the classes as well, prompts stay as alike as they were."""
    suite = pool("decodable_only", "inert")
    stream = [stream_changes(some_of_suite(suite, seed), seed=seed) for seed in range(100)]
    assert times(stream, "rank_change") >= 80
    assert times(behaviour("decodable_only", "inert"), "refusal_fall") <= 10


def test_what_only_the_unread_direction_tells_apart_is_less_alike_without_it() -> None:
    """Whether that is beyond an equally large change depends on which are drawn."""
    loss = stream_changes(pool("null", "inert"), seed=0)["cka_loss"]
    assert loss.value > 0.1
    assert times(behaviour("null", "inert"), "refusal_fall") <= 10


def test_an_ablation_that_changes_nothing_leaves_the_stream_as_it_is() -> None:
    suite = pool("null", "inert")
    same = replace(suite, after=np.concatenate([suite.before[None], suite.after[1:]]))
    stream = [stream_changes(some_of_suite(same, seed), seed=seed) for seed in range(100)]
    assert times(stream, "cka_loss") + times(stream, "rank_change") == 0


@pytest.mark.parametrize(("size", "verdict"), [(0.004, "not_supported"), (0.04, "supported")])
def test_a_sure_change_that_is_too_small_to_matter_is_none(size: float, verdict: str) -> None:
    kl = np.zeros((DRAWN + 1, POOL))
    kl[0] = size * np.linspace(0.9, 1.1, POOL)
    found = behaviour_changes(replace(pool("linear"), kl=kl), seed=0)
    assert found["first_token_kl"].verdict == verdict


def test_every_number_has_its_null() -> None:
    estimates = evaluation_suite(pool("linear"), seed=0).estimates
    assert len(estimates) == 6
    assert all(each.null is not None for each in estimates.values())


def test_unrelated_activations_have_no_debiased_alignment() -> None:
    """The plain one nears 1 when prompts are fewer than dimensions."""
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 24, 512)) for _ in range(50)]
    values = [debiased_cka(one, other) for one, other in pairs]
    assert abs(np.mean(values)) < 0.02
    turn = np.linalg.qr(rng.normal(size=(512, 512)))[0]
    assert debiased_cka(pairs[0][0], 3 * pairs[0][0] @ turn) == pytest.approx(1.0)
    with pytest.raises(MeasurementError, match="needs 4 prompts, and there are 3"):
        debiased_cka(pairs[0][0][:3], pairs[0][1][:3])


def test_effective_rank_counts_axes_and_its_null_keeps_a_large_coordinate() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3)) @ np.linalg.qr(rng.normal(size=(32, 3)))[0].T
    assert effective_rank(rows) == pytest.approx(3, abs=0.1)
    assert independent_rank(rows, rng) > 10
    rogue = rng.normal(size=(400, 32))
    rogue[:, 0] *= 1e3
    assert effective_rank(rogue) == pytest.approx(independent_rank(rogue, rng), rel=0.05)
    assert effective_rank(np.ones((8, 4))) == 0


def test_without_random_directions_there_is_no_report() -> None:
    suite = pool("linear")
    few = replace(
        suite, after=suite.after[:3], fall=suite.fall[:3], kl=suite.kl[:3], nll=suite.nll[:3]
    )
    with pytest.raises(MeasurementError, match="three nulls at least, and there are 2"):
        evaluation_suite(few, seed=0)


def test_it_is_drawn() -> None:
    assert all(drawn(each).axes for each in pictures(evaluation_suite(pool("linear"), seed=0)))
