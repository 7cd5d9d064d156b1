"""A map is believed where it predicts other documents; patterns and filters go through it."""

import numpy as np
import pytest

from obliteratus.analysis.stream_map import StreamMap, learn_map, ridge_filters

N, WIDTH, OTHER = 120, 24, 32
DOCUMENT = np.repeat(np.arange(N // 4), 4)


def streams(seed: int, *, share: float = 1.0, sink: float = 0.0) -> tuple[np.ndarray, ...]:
    """Return two models' streams of the same text, and the map between what they have in common.

    ``share`` of the second stream's variance comes from the first; both have a coordinate of
    ``sink`` times the size of the others, of its own in each.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, WIDTH)) + 5
    truth = rng.standard_normal((OTHER, WIDTH)) / np.sqrt(WIDTH)
    noise = rng.standard_normal((N, OTHER))
    y = np.sqrt(share) * x @ truth.T + np.sqrt(1 - share) * noise - 3
    if sink:
        x[:, 0] = sink * rng.standard_normal(N)
        y[:, 0] = sink * rng.standard_normal(N)
    return x, y, truth


def learned(x: np.ndarray, y: np.ndarray, seed: int = 0) -> StreamMap:
    return learn_map(x, y, DOCUMENT, permutations=39, seed=seed)


def test_a_linear_map_is_recovered() -> None:
    x, y, truth = streams(0)
    found = learned(x, y)
    assert found.explained.value > 0.99
    assert found.explained.verdict == "supported"
    np.testing.assert_allclose(found.matrix, truth, atol=0.02)


def test_a_weak_relation_is_found() -> None:
    assert (
        sum(learned(*streams(seed, share=0.4)[:2]).explained.verdict == "supported"
            for seed in range(100)) >= 80
    )  # fmt: skip


def test_unrelated_streams_are_not_mapped() -> None:
    seen = [learned(*streams(seed, share=0)[:2]).explained for seed in range(100)]
    assert sum(each.verdict == "supported" for each in seen) <= 10
    assert all(each.value < 0.05 for each in seen)


def test_an_enormous_coordinate_is_neither_the_map_nor_its_test() -> None:
    x, y, _ = streams(0, sink=1e4)
    found = learned(x, y)
    assert found.explained.value > 0.8  # all but one coordinate in 24 and in 32
    x, y, _ = streams(0, share=0, sink=1e4)
    y[:, 0] = x[:, 0]
    assert learned(x, y).explained.value < 0.1


def test_what_a_document_repeats_is_not_predicted_by_itself() -> None:
    """Passages of one document are alike in both models, and documents have nothing in common."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((N // 4, w))[DOCUMENT] for w in (WIDTH, OTHER))
    x, y = (each + 0.01 * rng.standard_normal(each.shape) for each in (x, y))
    assert learned(x, y).explained.verdict != "supported"


def test_a_pattern_goes_by_the_map_and_a_filter_by_its_inverse() -> None:
    x, y, _ = streams(0)
    there, back = learned(x, y), learned(y, x)
    rng = np.random.default_rng(1)
    read, change = rng.standard_normal((2, WIDTH))
    arrived = there.pattern(change)
    assert read @ back.matrix @ arrived == pytest.approx(read @ change, abs=0.1)
    assert abs(there.matrix @ read @ arrived - read @ change) > 0.1  # M in the place of its inverse


def test_one_direction_may_be_predicted_and_another_not() -> None:
    x, y, _ = streams(0)
    y[:, 5] = np.random.default_rng(2).standard_normal(N)
    found = learned(x, y)
    known, unknown = np.eye(OTHER)[[4, 5]]
    assert found.explained_along(known, DOCUMENT, 0).interval[0] > 0.9
    assert found.explained_along(unknown, DOCUMENT, 0).value < 0.1


def test_a_probe_reads_its_labels() -> None:
    x, _, _ = streams(0)
    labels = np.sign(x[:, 3] - 5)
    scores = (x - x.mean(axis=0)) @ ridge_filters(x, np.stack([labels, labels[::-1]]))[0]
    assert (np.sign(scores) == labels).mean() > 0.9
