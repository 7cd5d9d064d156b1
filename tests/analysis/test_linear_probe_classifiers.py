"""A probe that reads harm is told from one that memorises types and one that reads nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from obliteratus.analysis.findings import Findings
from obliteratus.analysis.linear_probe_classifiers import (
    PENALTIES,
    dealt,
    held_out_scores,
    linear_probe_classifiers,
    pictures,
    principal,
)
from obliteratus.analysis.probe_accuracy import accuracy_interval, selectivity
from obliteratus.errors import MeasurementError
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.testing.streams import activations_of

WIDTH, CATEGORIES, EACH = 24, 4, 12
LAYERS: tuple[Layer, ...] = ("embedding", 0)


def stream(
    seed: int,
    *,
    common: float = 3.0,
    own: float = 0.0,
    topics: float = 1.5,
    rogue: float = 1.0,
    each: int = EACH,
    is_paired: bool = True,
    has_categories: bool = True,
) -> Activations:
    """Noise at the embedding; at layer 0 harm shifts by ``common`` along one direction for all.

    ``own`` is the shift along a direction that each category has for itself, ``topics`` the length
    of what the prompts of a category, harmful or not, have in common.
    """
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.normal(size=(WIDTH, 2 * CATEGORIES + 1)))[0].T
    category = np.repeat(np.arange(CATEGORIES), each)
    shift = common * frame[0] + own * frame[1 : CATEGORIES + 1][category]
    topic = topics * frame[CATEGORIES + 1 :][category]
    sides: list[dict[Layer, torch.Tensor]] = []
    for sign in (0.5, -0.5):
        here = rng.normal(size=topic.shape) + topic + sign * shift
        here[:, 0] *= rogue
        noise = rng.normal(size=topic.shape)
        sides.append({"embedding": torch.tensor(noise)[:, None], 0: torch.tensor(here)[:, None]})
    names = [f"c{label}" for label in category] if has_categories else None
    return activations_of(sides[0], sides[1], is_paired=is_paired, categories=names)


def of(activations: Activations, seed: int = 0) -> Findings:
    return linear_probe_classifiers(activations, position=-1, permutations=39, seed=seed)


def found(seed: int, **options: Any) -> Findings:
    return of(stream(seed, **options), seed)


def supported(every: list[Findings], name: str) -> int:
    return sum(each.estimates[name].verdict == "supported" for each in every)


def test_planted_harm_is_read_beyond_controls_and_in_unseen_categories() -> None:
    every = [found(seed) for seed in range(100)]
    for name in ("accuracy", "selectivity", "transfer"):
        assert supported(every, name) >= 80
    assert sum(each.facts["best"] == 0 for each in every) >= 95


def test_without_harm_topics_are_not_mistaken_for_it() -> None:
    every = [found(seed, common=0.0, topics=4.0) for seed in range(100)]
    for name in ("accuracy", "selectivity", "transfer"):
        assert supported(every, name) <= 10


def test_memorised_types_are_read_but_are_not_selective_and_do_not_transfer() -> None:
    every = [found(seed, common=0.0, own=5.0, topics=4.0) for seed in range(100)]
    assert supported(every, "accuracy") >= 80
    assert supported(every, "selectivity") <= 10
    assert supported(every, "transfer") <= 10


def test_one_enormous_coordinate_changes_nothing() -> None:
    plain, scaled = found(1), found(1, rogue=1e4)
    assert plain.arrays["accuracy"] == pytest.approx(scaled.arrays["accuracy"], abs=1e-9)


def test_unpaired_prompts_without_categories_have_no_types_and_no_transfer() -> None:
    here = found(0, is_paired=False, has_categories=False)
    assert here.estimates["accuracy"].verdict == "supported"
    assert here.arrays["control"][1] == pytest.approx(0.5, abs=0.1)
    assert "transfer" not in here.estimates
    assert here.facts["types"] == "single prompts: no categories"
    assert "not known" in here.headline


def test_pairs_stay_together_and_control_labels_are_of_types() -> None:
    categories = tuple(f"c{row % 4}" for row in range(40)) * 2
    labels = dealt((40, 40), categories, True, 9, np.random.default_rng(0))
    assert (labels.part[:40] == labels.part[40:]).all()
    assert (labels.shuffled[:40] == -labels.shuffled[40:]).all()
    kinds = np.array(
        [f"{name} {label}" for name, label in zip(categories, labels.harm, strict=True)]
    )
    for column in labels.control.T:
        assert abs(column @ labels.harm) < 80
        for kind in set(kinds):
            assert len(set(column[kinds == kind])) == 1


def test_probes_are_those_of_ridge_on_all_coordinates() -> None:
    rng = np.random.default_rng(0)
    stream_, label = rng.normal(size=(30, 60)), np.repeat([1.0, -1.0], 15)
    held = np.arange(30) % 3 == 0
    scores = held_out_scores(principal(stream_), label[:, None], [held])[held, 0]
    centred = stream_ - stream_.mean(axis=0)
    unit = centred / centred.std(axis=0)
    unit = unit / np.sqrt((unit**2).sum(axis=1).mean())
    direct = [
        Ridge(alpha=penalty).fit(unit[~held], label[~held]).predict(unit[held])
        for penalty in PENALTIES
    ]
    assert min(float(np.abs(scores - each).max()) for each in direct) < 1e-6


def test_intervals_of_accuracy_cover_the_truth() -> None:
    rng, inside = np.random.default_rng(0), 0
    labels, unit = np.repeat([1.0, -1.0], 40), np.tile(np.arange(40), 2)
    for _ in range(400):  # both prompts of a pair are right or wrong together
        noise = np.tile(rng.normal(size=40), 2)
        scores = labels * (0.8416212335729143 + noise)  # right in 80 % of cases
        _, low, high = accuracy_interval(scores, labels, unit)
        inside += low <= 0.8 <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_intervals_of_selectivity_cover_the_truth() -> None:
    rng, inside = np.random.default_rng(0), 0
    labels = dealt((40, 40), ("a",) * 80, True, 0, rng)
    for _ in range(200):
        ability = rng.normal(0.5, 0.3, size=10)  # labellings differ in how hard they are
        noise = rng.normal(size=(80, 11))
        scores = labels.harm * (1.2 + noise[:, 0])
        control = labels.control * (ability + noise[:, 1:])
        _, low, high = selectivity(scores, control, labels, rng)
        inside += low <= 0.2 <= high  # Φ(1.2) − Φ(0.5 / √1.09) = 0.885 − 0.684
    assert inside / 200 >= 0.9


def test_few_prompts_are_refused() -> None:
    with pytest.raises(MeasurementError, match="at least 10 prompts of each class; there are 8"):
        found(0, each=2)


def test_it_is_drawn() -> None:
    shown = pictures(found(0))
    assert [each.title for each in shown] == [
        "What linear probes can tell",
        "Does it carry over to other categories?",
    ]
    assert all(drawn(each).axes and interactive(each).data for each in shown)
    assert len(pictures(found(0, has_categories=False))) == 1
