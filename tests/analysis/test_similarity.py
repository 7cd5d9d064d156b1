"""Models are alike where their prompts are, not where they have many dimensions or two classes."""

import numpy as np
import pytest

from obliteratus.analysis.shared_directions import Contrasts, angles, shared_span, signed_cosine
from obliteratus.analysis.similarity import (
    Products,
    compared,
    debiased_cka,
    overlap,
    products,
    rank_similarity,
)
from obliteratus.errors import MeasurementError

N, WIDTH = 24, 400
MEASURES = (debiased_cka, rank_similarity)


def classes(seed: int, shared: float, apart: float = 0.0) -> list[Products]:
    """Return two classes ``apart``, ``shared`` of whose variance both models have in common."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((2 * N, 6)) @ rng.standard_normal((6, 2 * WIDTH)) / np.sqrt(6)
    own = rng.standard_normal((2 * N, 2 * WIDTH))
    both = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    both[:N] += apart
    return [
        Products(products(both[rows, :WIDTH]), products(both[rows, WIDTH:]))
        for rows in (slice(None, N), slice(N, None))
    ]


def plain_cka(each: Products) -> float:
    middle = np.eye(len(each.first)) - 1 / len(each.first)
    one, other = (middle @ gram @ middle for gram in (each.first, each.second))
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def test_few_prompts_in_many_dimensions_are_not_alike() -> None:
    seen = [debiased_cka(classes(seed, 0.0)) for seed in range(50)]
    assert abs(np.mean(seen)) < 0.05
    assert plain_cka(classes(0, 0.0)[0]) > 0.9


def test_a_turned_and_scaled_stream_is_the_same() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, WIDTH))
    turn = np.linalg.qr(rng.standard_normal((N, N))).Q
    gram = products(x)
    assert debiased_cka([Products(gram, 7 * gram)]) == pytest.approx(1)
    assert rank_similarity([Products(gram, 7 * gram)]) == pytest.approx(1)
    assert abs(debiased_cka([Products(gram, turn @ gram @ turn.T)])) < 0.5


@pytest.mark.parametrize("measure", MEASURES)
def test_what_models_share_is_found(measure: object) -> None:
    seen = [
        compared(measure, classes(seed, 0.4), permutations=39, seed=seed)  # pyright: ignore[reportArgumentType]
        for seed in range(100)
    ]
    assert sum(each.verdict == "supported" for each in seen) >= 80


@pytest.mark.parametrize("measure", MEASURES)
def test_models_that_only_tell_the_classes_apart_are_not_alike(measure: object) -> None:
    seen = [
        compared(measure, classes(seed, 0.0, apart=9.0), permutations=39, seed=seed)  # pyright: ignore[reportArgumentType]
        for seed in range(100)
    ]
    assert sum(each.verdict == "supported" for each in seen) <= 10


def test_too_few_prompts_are_not_compared() -> None:
    few = [each.some(np.arange(5)) for each in classes(0, 1.0)]
    with pytest.raises(MeasurementError, match="on 8 prompts of each class at least; there are 5"):
        compared(debiased_cka, few, permutations=19, seed=0)


def contrasts(seed: int, size: float, cosine: float = 1.0) -> Contrasts:
    """Return three categories whose directions, ``size`` long, have this cosine between models.

    Both models have the noise of the same prompts, most of it along five directions.
    """
    rng = np.random.default_rng(seed)
    labels = ["abc"[row % 3] for row in range(36)]
    spread = np.where(np.arange(60) < 5, 6.0, 1.0)
    noise = rng.standard_normal((36, 60)) * spread
    frame = np.linalg.qr(rng.standard_normal((60, 6))).Q.T * size
    here = frame[:3][np.arange(36) % 3]
    there = (cosine * frame[:3] + np.sqrt(1 - cosine**2) * frame[3:])[np.arange(36) % 3]
    found = Contrasts.of(here + noise, there + noise, labels)
    assert found is not None
    return found


def test_spans_that_models_share_are_found() -> None:
    seen = [shared_span(contrasts(s, 12.0), permutations=39, seed=s) for s in range(100)]
    assert sum(each.verdict == "supported" for each in seen) >= 80
    assert angles(contrasts(0, 40.0), 0).min() > 0.9


@pytest.mark.parametrize("measure", [shared_span, signed_cosine])
def test_noise_of_the_same_prompts_is_no_shared_direction(measure: object) -> None:
    seen = [
        measure(contrasts(s, 0.0), permutations=39, seed=s)  # pyright: ignore[reportCallIssue]
        for s in range(100)
    ]
    assert sum(each.verdict == "supported" for each in seen) <= 10


def test_directions_that_are_orthogonal_are_not_shared() -> None:
    seen = [
        signed_cosine(contrasts(s, 12.0, cosine=0.0), permutations=39, seed=s) for s in range(40)
    ]
    assert sum(each.verdict == "supported" for each in seen) <= 4
    assert signed_cosine(contrasts(0, 12.0), permutations=39, seed=0).verdict == "supported"


def test_principal_angles_are_those_between_the_planes() -> None:
    rows = np.eye(4)
    tilted = np.stack([rows[0], np.cos(0.5) * rows[1] + np.sin(0.5) * rows[2]])
    np.testing.assert_allclose(overlap(3 * rows[:2], tilted), [1, np.cos(0.5)], atol=1e-12)


def test_without_two_categories_there_is_no_span() -> None:
    assert Contrasts.of(np.ones((9, 4)), np.ones((9, 4)), ["a"] * 9) is None
    assert Contrasts.of(np.ones((9, 4)), np.ones((9, 4)), [None] * 9) is None
