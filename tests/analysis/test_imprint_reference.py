"""What the shipped organisms validate, whether the page says so, and what other models are told."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from obliteratus.analysis.alignment_imprint import Names, is_validated, names_of
from obliteratus.analysis.imprint_classifier import Validation, refusing, validated
from obliteratus.analysis.imprint_reference import Reference, shipped_reference
from obliteratus.analysis.imprint_sets import FEWEST_BASES, left_out_sets
from obliteratus.analysis.module import ANALYSES
from obliteratus.errors import MeasurementError
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.pictures.drawn import drawn
from obliteratus.statistics.proportion import wilson
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import planted

PAGE = Path(__file__).parents[2] / "docs" / "design" / "imprint.md"
PERMUTATIONS, FEW = 999, 199


@cache
def checked() -> Validation:
    return validated(shipped_reference(), permutations=PERMUTATIONS, seed=0)


@cache
def names() -> Names:
    return names_of(shipped_reference(), left_out_sets(shipped_reference()))


def test_methods_are_told_apart_on_bases_that_were_not_seen() -> None:
    assert len(set(shipped_reference().bases)) > FEWEST_BASES
    assert checked().p == 1 / (PERMUTATIONS + 1)
    assert checked().by_base.min() > 1 / refusing(shipped_reference())
    assert is_validated(checked(), names())


def test_labels_of_another_base_validate_nothing() -> None:
    """Features as they are, methods dealt anew within each base: the same code finds nothing."""
    real, rng = shipped_reference(), np.random.default_rng(0)
    methods = np.array(real.methods)
    for base in set(real.bases):
        rows = np.flatnonzero(np.array(real.bases) == base)
        methods[rows] = rng.permutation(methods[rows])
    dealt: Reference = replace(real, methods=tuple(methods.tolist()))
    found = validated(dealt, permutations=PERMUTATIONS, seed=0)
    assert found.p > 0.01
    assert not is_validated(found, names_of(dealt, left_out_sets(dealt)))


def test_a_name_is_right_or_not_given() -> None:
    assert names().right >= 0.9 * names().single > 0
    assert names().twins_named == 0


def of_head(feature: str) -> bool:
    return feature.startswith(("lens", "sure"))


def only(wanted: Callable[[str], bool]) -> Reference:
    """The shipped organisms with the features that are wanted."""
    real = shipped_reference()
    kept = [place for place, name in enumerate(real.features) if wanted(name)]
    names = tuple(real.features[place] for place in kept)
    return replace(real, features=names, values=real.values[:, kept])


def in_families() -> Reference:
    real = shipped_reference()
    return replace(real, bases=tuple(base.partition("-")[0] for base in real.bases))


def without_extended() -> Reference:
    real = shipped_reference()
    return real.rows(np.array([method != "extended" for method in real.methods]))


OTHERWISE: dict[str, tuple[Callable[[], Reference], str]] = {
    "the first word": (lambda: only(lambda name: not of_head(name)), "the accuracy is {:.2f},"),
    "all but the first word": (lambda: only(of_head), "with them alone {:.2f}."),
    "one strange method": (without_extended, "of `extended` it is {:.2f} over four"),
    "relatives": (in_families, "a *family* left out it is {:.2f};"),
}
"""What else could tell methods apart -> the organisms without it, and what the page says."""


@pytest.mark.parametrize("name", OTHERWISE)
def test_methods_are_told_apart_without(name: str) -> None:
    made, said = OTHERWISE[name]
    found = validated(made(), permutations=FEW, seed=0)
    assert found.p == 1 / (FEW + 1)
    assert said.format(found.accuracy) in page()


def page() -> str:
    return " ".join(PAGE.read_text(encoding="utf-8").split())


def test_the_page_prints_what_is_shipped() -> None:
    found, told = checked(), names()
    covered = wilson(told.covered, told.n)
    assert f"balanced accuracy is **{found.accuracy:.2f}**" in page()
    assert f"p = {found.p:.3f}" in page()
    assert f"{told.covered} of {told.n} ({covered.interval[0]:.2f} to " in page()
    assert f"{told.single} of {told.n} get a name, {told.right} of these the right one" in page()
    assert f"{told.twins_named} of {told.twins} twins" in page()
    labels = shipped_reference().labels
    for method, row in zip(labels[: len(found.confusion)], found.confusion, strict=True):
        assert f"| `{method}` | {' | '.join(f'{share:.1f}' for share in row)} |" in page()


@pytest.mark.parametrize("variant", ["linear", "null", "decodable_only"])
def test_a_model_unlike_organisms_is_given_no_name(variant: str) -> None:
    plant = planted(variant)
    prompts = plant.prompts(64)
    found = ANALYSES["alignment_imprint"].run(planted_bench(plant, prompts, fit=prompts))
    assert found.facts["is_validated"]
    assert found.facts["label"] == "undetermined"
    assert found.estimates["methods_left"].verdict == "undetermined"
    assert all(drawn(each).axes for each in ANALYSES["alignment_imprint"].pictures(found))


def test_only_refusal_has_an_imprint() -> None:
    plant = planted("linear")
    bench = planted_bench(plant, plant.prompts(16))
    with pytest.raises(MeasurementError, match="no imprint of 'sentiment'"):
        ANALYSES["alignment_imprint"].run(replace(bench, behaviour=BEHAVIOURS["sentiment"]))
