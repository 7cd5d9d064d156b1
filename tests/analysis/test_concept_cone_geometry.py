"""One direction is called one however noisy, several are found, and noise is called neither."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.category_geometry import CategoryGeometry, category_geometry
from obliteratus.analysis.concept_cone_geometry import (
    concept_cone_geometry,
    pictures,
)
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.products import Groups
from obliteratus.directions.samples import samples_at
from obliteratus.errors import MeasurementError
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.probe.activations import Activations
from obliteratus.testing.streams import activations_of

CATEGORIES = 4


def stream(
    seed: int,
    *,
    norm: float = 5.0,
    apart: float = 0.0,
    strengths: tuple[float, ...] = (1.0,) * CATEGORIES,
    n: int = 32,
    width: int = 48,
    shared: int = 0,
) -> Activations:
    """Unit noise; category c has a direction of length ``norm`` · strength.

    ``apart`` is the sine of the angle between each direction and the one that all have a part of.
    With ``shared`` harmless prompts the set is not paired, and all categories share them.
    """
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.normal(size=(width, len(strengths) + 1)))[0].T
    own = np.sqrt(1 - apart**2) * frame[0] + apart * frame[1:]
    delta = norm * np.array(strengths)[:, None] * own
    harmful = rng.normal(size=(len(strengths) * n, width)) + np.repeat(delta, n, axis=0)
    harmless = rng.normal(size=(shared or len(harmful), width))
    categories = [f"c{each}" for each in range(len(strengths)) for _ in range(n)]
    return activations_of(
        {3: torch.tensor(harmful)[:, None]},
        {3: torch.tensor(harmless)[:, None]},
        is_paired=not shared,
        categories=categories,
    )


def found(seed: int, **options: Any) -> Findings:
    return of(stream(seed, **options), seed)


def of(activations: Activations, seed: int = 0, permutations: int = 99) -> Findings:
    return concept_cone_geometry(
        activations, layer=3, position=-1, permutations=permutations, seed=seed
    )


def verdicts(**options: Any) -> Counter[str]:
    return Counter(found(seed, **options).facts["geometry"] for seed in range(100))


def geometry(activations: Activations, seed: int = 0) -> CategoryGeometry:
    labels = activations.harmful.categories
    groups = Groups.of(samples_at(activations, 3, -1), labels, sorted(set(map(str, labels))))
    return category_geometry(groups, has_direction=True, permutations=19, seed=seed)


def test_one_planted_direction_is_one() -> None:
    every = [found(seed) for seed in range(100)]
    assert sum(each.estimates["mean_cosine"].verdict == "supported" for each in every) >= 80
    assert sum(each.estimates["directions"].value == 1 for each in every) >= 90


def test_planted_directions_are_counted() -> None:
    every = [found(seed, apart=0.7) for seed in range(100)]
    assert sum(each.facts["geometry"] == "subspace" for each in every) >= 80
    assert sum(each.estimates["directions"].value == CATEGORIES for each in every) >= 80
    assert np.mean([each.estimates["mean_cosine"].value for each in every]) == pytest.approx(
        0.51, abs=0.02
    )


def test_a_small_second_direction_is_one_though_categories_share_the_first() -> None:
    every = [found(seed, apart=0.1) for seed in range(12)]
    counted = [each.estimates["directions"] for each in every if each.facts["geometry"] == "linear"]
    assert {each.value for each in counted} == {1, 2}
    for each in counted:
        assert each.verdict == ("supported" if each.value > 1 else "not_supported")


def test_without_a_direction_nothing_is_reported() -> None:
    assert verdicts(norm=0.0)["undetermined"] >= 90


def test_one_direction_of_many_strengths_is_no_subspace() -> None:
    assert verdicts(strengths=(0.4, 0.8, 1.2, 1.6))["subspace"] <= 10


def test_shared_harmless_prompts_make_no_direction_common() -> None:
    assert verdicts(apart=1.0, shared=16)["linear"] == 0


def test_the_published_confusion_is_reproduced_and_taken_out() -> None:
    options: dict[str, Any] = {
        "norm": 6.0, "width": 1024, "n": 32, "strengths": (1.0,) * 6
    }  # fmt: skip
    outside = ~np.eye(6, dtype=bool)
    for shared, expected in ((0, 0.36), (32, 0.68)):
        drawings = [geometry(stream(seed, shared=shared, **options), seed) for seed in range(6)]
        plain = np.mean([each.plain[outside] for each in drawings])
        assert plain == pytest.approx(expected, abs=0.03)
        for each in drawings:
            assert each.geometry != "subspace"
            assert 0.8 < each.mean[1] <= each.mean[2] == 1.0
            assert (each.high[outside] >= 0.999).mean() > 0.9


def test_intervals_cover_the_true_cosine() -> None:
    inside, single, truth = 0, 0, 1 - 0.7**2
    for seed in range(200):
        here = geometry(stream(seed, apart=0.7, n=16, norm=4.0), seed)
        inside += here.mean[1] <= truth <= here.mean[2]
        single += here.low[0, 1] <= truth <= here.high[0, 1]
    assert inside / 200 >= 0.92
    assert single / 200 >= 0.92


def test_a_category_without_a_direction_is_undetermined_and_the_others_are_not() -> None:
    here = of(stream(0, strengths=(1.0, 1.0, 1.0, 0.0)))
    cosine = here.arrays["cosine"]
    assert np.isnan(cosine[3]).all()
    assert np.isfinite(cosine[:3, :3]).all()


def test_opposite_directions_have_negative_cosines() -> None:
    cosine = of(stream(0, strengths=(1.0, 1.0, 1.0, -1.0), norm=8.0)).arrays["cosine"]
    assert cosine[0, 3] < -0.9
    assert cosine[0, 1] > 0.9


def test_small_categories_are_left_out_by_name() -> None:
    activations = stream(0)
    labels = ("rare",) * 7 + activations.harmful.categories[7:]
    here = of(replace(activations, harmful=replace(activations.harmful, categories=labels)))
    assert here.facts["left_out"] == ["rare"]
    assert here.facts["categories"] == ["c0", "c1", "c2", "c3"]


def test_prompts_without_categories_are_refused() -> None:
    bare = stream(0)
    bare = replace(bare, harmful=replace(bare.harmful, categories=(None,) * 128))
    with pytest.raises(MeasurementError, match=r"there are 0 .*Add a column 'category'"):
        of(bare)
    moments = replace(bare, harmless=replace(bare.harmless, kept={}))
    with pytest.raises(MeasurementError, match='keep="prompts"'):
        of(moments)


def test_it_is_drawn() -> None:
    one, noise = stream(0, apart=0.7), stream(1, norm=0.0)
    sides = [
        {"embedding": nothing.kept[3], 3: something.kept[3]}
        for nothing, something in (
            (noise.harmful, one.harmful),
            (noise.harmless, one.harmless),
        )
    ]
    both = activations_of(sides[0], sides[1], categories=one.harmful.categories)
    shown = pictures(of(both))
    assert [each.title for each in shown] == [
        "Do categories share a direction?",
        "How many directions?",
        "One direction at every layer?",
    ]
    assert all(drawn(each).axes and interactive(each).data for each in shown)
    assert pictures(of(noise))[0].title == "Do categories share a direction?"
