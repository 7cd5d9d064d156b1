"""A method is named when organisms of other bases show it, and never for what a base looks like."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import oas

from obliteratus.analysis import imprint_reference
from obliteratus.analysis.alignment_imprint import (
    Names,
    alignment_imprint,
    is_validated,
    names_of,
    pictures,
)
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.imprint_classifier import (
    Classifier,
    balanced_accuracy,
    left_out_distances,
    numbers,
    shrunk,
    validated,
)
from obliteratus.analysis.imprint_reference import TWIN, Reference, shipped_reference
from obliteratus.analysis.imprint_sets import Sets, against_others, left_out_sets, sets_of
from obliteratus.errors import MeasurementError, StorageError
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.store import write_json

METHODS = ("dpo", "rl", "sft")
FEATURES = ("a", "b", "c", "d", "e", "f")
BASES, PERMUTATIONS = 10, 199


def grown(seed: int, *, effect: float, bases: int = BASES) -> Reference:
    """One organism of every method on every base; bases differ by 3, organisms by 1.

    The last ``bases`` are the reference's; the first is one more, which is unseen.
    """
    rng = np.random.default_rng(seed)
    labels = (*METHODS, TWIN)
    means = effect * np.eye(len(labels), len(FEATURES))
    rows: list[np.ndarray] = []
    for _ in range(bases + 1):
        looks = np.zeros(len(FEATURES))
        looks[len(labels) :] = 3 * rng.normal(size=len(FEATURES) - len(labels))
        rows += [looks + means[row] + rng.normal(size=len(FEATURES)) for row in range(len(labels))]
    names = tuple(f"base{base}" for base in range(bases + 1) for _ in labels)
    return Reference(FEATURES, np.array(rows), labels * (bases + 1), names)


def unseen(every: Reference, method: str) -> tuple[dict[str, float], Reference]:
    """Return the features of the first base's organism of ``method``, and the other bases."""
    first = np.array([base == every.bases[0] for base in every.bases])
    here = every.rows(first)
    values = here.values[here.methods.index(method)].tolist()
    return dict(zip(FEATURES, values, strict=True)), every.rows(~first)


def found(seed: int, method: str, *, effect: float, **options: Any) -> Findings:
    features, reference = unseen(grown(seed, effect=effect, **options), method)
    return alignment_imprint(features, reference, permutations=PERMUTATIONS, seed=seed)


def test_a_planted_method_is_named() -> None:
    labels = [found(seed, METHODS[seed % 3], effect=6.0).facts["label"] for seed in range(100)]
    right = [label == METHODS[seed % 3] for seed, label in enumerate(labels)]
    wrong = [label not in (METHODS[seed % 3], "undetermined") for seed, label in enumerate(labels)]
    assert sum(right) >= 80
    assert sum(wrong) <= 5


def test_without_an_effect_no_method_is_named() -> None:
    every = [found(seed, METHODS[seed % 3], effect=0.0) for seed in range(100)]
    assert sum(each.facts["label"] != "undetermined" for each in every) <= 10
    assert sum(each.facts["is_validated"] for each in every) <= 10
    assert sum(each.estimates["methods_left"].verdict == "supported" for each in every) <= 10


def test_recognising_the_base_gains_nothing() -> None:
    """Labels go with bases, and features show the base alone: a random split is fooled."""
    named, fooled, left_out = [], [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        bases = np.repeat(np.arange(30), 6)
        looks = 5 * rng.normal(size=(30, len(FEATURES)))
        values = looks[bases] + 0.1 * rng.normal(size=(len(bases), len(FEATURES)))
        methods = tuple(
            METHODS[base % 3] if copy < 5 else METHODS[(base + 1) % 3]
            for base in range(30)
            for copy in range(6)
        )
        reference = Reference(FEATURES, values, methods, tuple(f"base{base}" for base in bases))
        chosen, halves = numbers(reference), rng.permutation(len(bases)) % 2 == 0
        # The nearest neighbour across a random split: copies of a base are on both sides.
        apart = np.linalg.norm(values[halves, None] - values[~halves], axis=2)
        nearest = chosen[~halves][np.argsort(apart, axis=1)[:, :1]]
        fooled.append((nearest[:, 0] == chosen[halves]).mean())
        left_out.append(balanced_accuracy(left_out_distances(reference), chosen, 3))
        model = dict(zip(FEATURES, values[0].tolist(), strict=True))
        here = alignment_imprint(model, reference, permutations=PERMUTATIONS, seed=seed)
        named.append(here.facts["label"])
    assert np.mean(fooled) > 0.5
    assert np.mean(left_out) < 0.43
    assert named.count("undetermined") >= 9


def test_a_model_unlike_every_organism_is_undetermined() -> None:
    _, reference = unseen(grown(0, effect=6.0), "sft")
    strange = dict.fromkeys(FEATURES, 60.0)
    here = alignment_imprint(strange, reference, permutations=PERMUTATIONS, seed=0)
    assert not here.facts["is_typical"]
    assert here.facts["label"] == "undetermined"
    assert "unlike every organism" in here.headline


def test_a_model_that_is_like_the_twins_is_given_no_name() -> None:
    every = [found(seed, TWIN, effect=6.0) for seed in range(10)]
    assert {each.facts["label"] for each in every} == {"undetermined"}
    assert any("refuse nothing" in each.headline for each in every)


def test_two_methods_that_look_alike_are_both_in_the_set() -> None:
    every = grown(1, effect=6.0, bases=20)
    alike = replace(every, methods=tuple({"rl": "sft2"}.get(m, m) for m in every.methods))
    rows = np.array([method == "sft2" for method in alike.methods])
    sft = np.array([method == "sft" for method in alike.methods])
    values = alike.values.copy()
    values[rows] = alike.values[sft] + np.random.default_rng(0).normal(size=values[sft].shape)
    features, reference = unseen(replace(alike, values=values), "sft")
    here = alignment_imprint(features, reference, permutations=PERMUTATIONS, seed=0)
    assert here.facts["is_validated"]
    assert {"sft", "sft2"} <= set(here.facts["set"])
    assert here.facts["label"] == "undetermined"


def test_sets_hold_the_truth_as_often_as_they_promise() -> None:
    covered = np.concatenate(
        [
            sets.members[np.arange(len(sets.p)), numbers(every)]
            for every in (grown(seed, effect=2.0, bases=19) for seed in range(12))
            for sets in (left_out_sets(every),)
        ]
    )
    assert covered.mean() >= 0.88


def test_a_base_counts_once_however_many_organisms_it_has() -> None:
    features, reference = unseen(grown(0, effect=2.0), "sft")
    row = np.array([list(features.values())])
    many = [0] * 5 + list(range(len(reference.bases)))
    repeated = Reference(
        FEATURES,
        reference.values[many],
        tuple(reference.methods[i] for i in many),
        tuple(reference.bases[i] for i in many),
    )
    assert sets_of(repeated, row).p.min() >= 1 / (BASES + 1) - 1e-12
    assert sets_of(repeated, row).p.max() <= 1


def test_the_permutation_p_is_small_only_with_an_effect() -> None:
    with_effect = [validated(grown(s, effect=4.0), permutations=99, seed=s).p for s in range(5)]
    without = [validated(grown(s, effect=0.0), permutations=99, seed=s).p for s in range(5)]
    assert max(with_effect) == 0.01
    assert min(without) > 0.01


@pytest.mark.parametrize(
    ("change", "is_trusted"),
    [
        ({}, True),
        ({"covered": 40}, False),
        ({"bases": 0, "bases_right": 0}, False),
        ({"bases_right": 3}, False),
    ],
    ids=["as it is", "sets miss the truth", "no name was ever given", "names are mostly wrong"],
)
def test_each_check_of_names_can_fail(change: dict[str, int], is_trusted: bool) -> None:
    checked = validated(grown(0, effect=6.0), permutations=PERMUTATIONS, seed=0)
    good = Names(
        n=60,
        covered=55,
        size=2.0,
        single=20,
        right=19,
        twins=10,
        twins_named=0,
        bases=9,
        bases_right=8,
    )
    assert is_validated(checked, replace(good, **change)) is is_trusted
    without = replace(checked, null=np.full_like(checked.null, checked.accuracy))
    assert not is_validated(without, good)


def test_bases_are_counted_by_whether_all_their_names_are_right() -> None:
    reference = grown(0, effect=6.0, bases=2)
    chosen, labels = numbers(reference), len(METHODS) + 1
    p = np.zeros((len(chosen), labels))
    p[np.arange(len(chosen)), chosen] = 1.0  # every set holds the truth alone
    names = names_of(reference, Sets(p, np.ones(len(p))))
    assert (names.single, names.right, names.bases, names.bases_right) == (9, 9, 3, 3)
    p[0] = np.roll(p[0], 1)  # the first base's first organism gets another method's name
    p[labels + 3] = p[0]  # the second base's twin gets one
    p[2 * labels :] = 1.0  # and in the third nothing is told apart
    names = names_of(reference, Sets(p, np.ones(len(p))))
    assert (names.single, names.right, names.twins_named) == (6, 5, 1)
    assert (names.bases, names.bases_right) == (2, 0)
    assert names_of(reference, Sets(p, np.zeros(len(p)))).bases == 0  # unlike all: no names


def test_where_methods_go_with_bases_nothing_is_significant() -> None:
    """Labels are permuted within bases: with one organism of each there is nothing to permute."""
    every = grown(0, effect=8.0, bases=23)
    place = {base: number for number, base in enumerate(dict.fromkeys(every.bases))}
    kept = [
        method == METHODS[place[base] % 3]
        for base, method in zip(every.bases, every.methods, strict=True)
    ]
    checked = validated(every.rows(np.array(kept)), permutations=19, seed=0)
    assert checked.accuracy > 0.8
    assert checked.p == 1


def test_scores_are_those_of_the_odds_against_all_others() -> None:
    distances = np.array([[1.0, 4.0, 9.0], [5.0, 2.0, 2.0]])
    assert against_others(distances).tolist() == [[-3, 3, 8], [3, 0, 0]]


def test_names_count_only_refusing_methods() -> None:
    every = grown(0, effect=8.0)
    names = names_of(every, left_out_sets(every))
    assert (names.n, names.twins) == (3 * (BASES + 1), BASES + 1)
    assert names.right == names.single > 0
    assert names.twins_named == 0


def test_distances_are_those_of_a_linear_discriminant() -> None:
    rng = np.random.default_rng(0)
    chosen = np.repeat(np.arange(2), 400)
    mixing = rng.normal(size=(3, 3))
    values = rng.normal(size=(800, 3)) @ mixing + 2.0 * chosen[:, None] * mixing[0]
    fitted = Classifier.fitted(values, chosen, 2)
    squared = fitted.distances(fitted.means[1:] * fitted.scale + fitted.middle)[0]
    assert squared[1] == pytest.approx(0, abs=1e-9)
    assert squared[0] == pytest.approx(4.0, rel=0.2)  # 2 standard deviations along one axis


def test_shrinkage_is_that_of_scikit_learn_for_every_labeling() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, 40, 12)) * rng.uniform(0.1, 3, size=(3, 1, 12))
    sampled = np.swapaxes(rows, 1, 2) @ rows / 40
    for one, covariance in zip(rows, shrunk(sampled, 40), strict=True):
        assert covariance == pytest.approx(oas(one, assume_centered=True)[0], rel=1e-9)


def test_many_labelings_are_fitted_as_each_alone() -> None:
    every = grown(0, effect=2.0)
    rng = np.random.default_rng(0)
    others = np.stack([rng.permutation(numbers(every)) for _ in range(3)])
    together = left_out_distances(every, others)
    for labels, distances in zip(others, together, strict=True):
        assert distances == pytest.approx(left_out_distances(every, labels))
        assert balanced_accuracy(distances, labels, 3) in balanced_accuracy(together, others, 3)


def test_with_few_bases_nothing_can_be_left_out_and_nothing_is_named() -> None:
    features, reference = unseen(grown(0, effect=8.0, bases=8), "sft")
    here = alignment_imprint(features, reference, permutations=PERMUTATIONS, seed=0)
    assert here.facts["set"] == [*METHODS, TWIN]
    assert here.facts["label"] == "undetermined"
    assert "10 bases are needed and 8 are there" in here.headline


def test_too_few_bases_to_fit_are_refused() -> None:
    features, reference = unseen(grown(0, effect=6.0, bases=3), "sft")
    with pytest.raises(MeasurementError, match="there are organisms of 3"):
        alignment_imprint(features, reference, permutations=PERMUTATIONS, seed=0)


def test_features_of_another_kind_are_refused() -> None:
    features, reference = unseen(grown(0, effect=6.0), "sft")
    with pytest.raises(MeasurementError, match="Run make organisms"):
        alignment_imprint({**features, "g": 0.0}, reference, permutations=20, seed=0)
    with pytest.raises(MeasurementError, match="'b' is not"):
        alignment_imprint({**features, "b": float("nan")}, reference, permutations=20, seed=0)


def test_a_reference_made_by_other_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"base": "b", "method": "sft", "seed": 0, "values": [1.0]}
    record = {
        "schema_version": 1,
        "code_sha256": imprint_reference.features_code(),
        "features": ["a"],
        "organisms": [row],
    }
    write_json(tmp_path / "imprint.json", record)
    assert shipped_reference(tmp_path / "imprint.json").features == ("a",)
    monkeypatch.setattr(imprint_reference, "features_code", lambda: "another")
    with pytest.raises(MeasurementError, match="made by other code"):
        shipped_reference(tmp_path / "imprint.json")
    with pytest.raises(MeasurementError, match="is missing"):
        shipped_reference(tmp_path / "nothing.json")
    write_json(tmp_path / "imprint.json", {"schema_version": 1})
    with pytest.raises(StorageError, match="damaged"):
        shipped_reference(tmp_path / "imprint.json")
    write_json(tmp_path / "imprint.json", {"schema_version": 0})
    with pytest.raises(StorageError, match="another schema"):
        shipped_reference(tmp_path / "imprint.json")


def test_it_is_drawn() -> None:
    for effect in (0.0, 6.0):
        here = found(0, "sft", effect=effect)
        shown = pictures(here)
        assert all(drawn(each).axes and interactive(each).data for each in shown)
        assert ("Not validated" in shown[0].caption) is not here.facts["is_validated"]
