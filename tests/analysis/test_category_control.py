"""A planted cone is called one by what it does, one direction linear, and an unread one neither."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from obliteratus.analysis.category_control import CategoryControl, control_findings, measure_control
from obliteratus.analysis.concept_cone_geometry import (
    category_directions,
    concept_cone_geometry,
    pictures,
)
from obliteratus.analysis.findings import Findings
from obliteratus.directions.samples import samples_at
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.pictures.spec import Dots, Heat, Picture
from obliteratus.probe.activations import Activations
from obliteratus.probe.capture import probe
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import planted

POOL, FEW = 48, 24  # prompts on which directions act, and how many of them one experiment sees
DRAWN, VECTORS = 10, 6  # the same for random directions
FIT = 96


@cache
def pool(variant: str) -> tuple[Activations, CategoryControl]:
    plant = planted(variant)
    prompts = plant.prompts(POOL, seed=1)

    bench = planted_bench(plant, prompts, prompts=POOL)
    activations = probe(plant.model, plant.prompts(FIT))
    layer = plant.truth.write_layer
    samples = samples_at(activations, layer, -1)
    labels = activations.harmful.categories
    rows = category_directions(samples, labels, sorted(set(map(str, labels))))
    length = float(samples.delta.norm())
    control = measure_control(
        bench,
        rows,
        samples.delta / length,
        layer=layer,
        length=length,
        mean=samples.harmless.double().mean(dim=0),
        vectors=DRAWN,
    )
    return activations, control


def some(control: CategoryControl, seed: int) -> CategoryControl:
    rng = np.random.default_rng(seed)
    each = FEW // len(control.names)
    labels = np.array(control.labels)
    rows = np.concatenate(
        [rng.choice(np.flatnonzero(labels == n), each, replace=False) for n in control.names]
    )
    vectors = rng.choice(DRAWN, size=VECTORS, replace=False)
    few = rng.choice(POOL, size=FEW, replace=False)
    return replace(
        control,
        labels=tuple(labels[rows].tolist()),
        removed=control.removed[:, rows],
        random=control.random[vectors][:, rows],
        positive=control.positive[:, few],
        mixed=control.mixed[:, few],
        random_added=control.random_added[vectors][:, few],
    )


def of(variant: str, seed: int = 0) -> Findings:
    activations, control = pool(variant)
    return concept_cone_geometry(
        activations, layer=2, position=-1, permutations=39, seed=seed, control=some(control, seed)
    )


def causal(variant: str) -> Counter[str]:
    control = pool(variant)[1]
    seen = [control_findings(some(control, seed), seed=seed) for seed in range(100)]
    return Counter(f"{each.control} {each.sums}" for each in seen)


def test_a_planted_cone_is_found() -> None:
    assert causal("cone")["several cone"] >= 80
    assert of("cone").facts["verdict"] == "cone"


def test_each_category_of_a_cone_depends_on_its_own_direction() -> None:
    matrix = of("cone").arrays["removed"][:, :-1]
    assert np.diagonal(matrix).min() > 6
    assert np.abs(matrix[~np.eye(len(matrix), dtype=bool)]).max() < 3


def test_one_direction_is_linear_though_categories_can_be_told_apart() -> None:
    """Behind it heads have copied what kind of harm it is, so the geometry counts several."""
    seen = causal("linear")
    assert sum(count for name, count in seen.items() if name.startswith("one")) >= 80
    assert of("linear").facts["verdict"] == "linear"


def test_directions_that_nothing_reads_have_no_shape() -> None:
    seen = causal("null")
    assert sum(count for name, count in seen.items() if name.startswith("undetermined")) >= 90
    assert of("null").facts["verdict"] == "undetermined"


def test_without_refusal_tokens_the_geometry_stands_alone() -> None:
    activations, _ = pool("cone")
    seen = concept_cone_geometry(
        activations, layer=2, position=-1, permutations=39, seed=0, without_control="no tokens"
    )
    assert seen.facts["verdict"] == "undetermined"
    assert seen.facts["causal"] == "no tokens"
    assert "selectivity" not in seen.estimates


def test_the_matrix_is_drawn() -> None:
    shown = pictures(of("cone"))
    assert "Whose direction ends whose refusal?" in [each.title for each in shown]
    assert all(drawn(each).axes for each in shown)


def addition(findings: Findings) -> Picture:
    title = "Which sums and differences bring refusal about?"
    (found,) = [each for each in pictures(findings) if each.title == title]
    return found


def matrices(findings: Findings) -> tuple[np.ndarray, np.ndarray]:
    sums, differences = (panel.marks[0] for panel in addition(findings).panels[:2])
    assert isinstance(sums, Heat)
    assert isinstance(differences, Heat)
    assert sums.scale == differences.scale
    return sums.values, differences.values


def test_the_picture_of_a_cone_has_every_sum_and_difference_at_its_place() -> None:
    found = of("cone")
    names = found.facts["removed_categories"]
    sums, differences = matrices(found)
    rises = dict(zip(found.facts["added"], found.arrays["positive"], strict=True))
    rises |= dict(zip(found.facts["subtracted"], found.arrays["mixed"], strict=True))
    for row, one in enumerate(names):
        assert sums[row, row] == rises[one]
        assert np.isnan(differences[row, row])
        for column, other in enumerate(names[:row]):
            assert sums[row, column] == sums[column, row] == rises[f"{other} + {one}"]
            assert differences[row, column] == rises[f"{one} − {other}"]
            assert differences[column, row] == rises[f"{other} − {one}"]
    assert sums.min() > 2 * np.nanmax(differences)


def test_the_picture_shows_what_decides_with_intervals_beside_random_vectors() -> None:
    found = of("cone")
    shown = addition(found)
    (dots,) = shown.panels[2].marks
    assert isinstance(dots, Dots)
    least, every, largest, *random = range(len(dots.names))
    smallest = found.facts["added"][found.arrays["positive"].argmin()]
    assert f"the least sum ({smallest})" in shown.caption
    assert dots.values[least] == pytest.approx(found.estimates["least_sum"].value)
    assert dots.values[largest] == pytest.approx(found.estimates["largest_difference"].value)
    assert dots.values[least] <= dots.values[every]
    assert dots.low[least] > max(dots.high[row] for row in (largest, *random))
    assert all(low < value < high for low, value, high in zip(dots.low, dots.values, dots.high,
                                                              strict=True))  # fmt: skip


def test_in_the_picture_of_directions_that_nothing_reads_no_sum_stands_out() -> None:
    found = of("null")
    bound = found.estimates["least_sum"].null
    assert bound is not None
    sums, differences = matrices(found)
    assert max(sums.max(), np.nanmax(differences)) < bound
    assert all(interactive(each).data for each in pictures(found))
