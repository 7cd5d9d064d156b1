"""Layers that share a direction are grouped, chains are not, and carried noise is no direction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.cross_layer_alignment import (
    control_of_layers,
    cross_layer_alignment,
    pictures,
)
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.layer_products import LayerProducts
from obliteratus.analysis.products import cosines, percentiles
from obliteratus.errors import MeasurementError
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.testing.streams import activations_of

WIDTH, PAIRS, NORM = 40, 48, 4.0
TWO_GROUPS = (0.0, 0.0, 0.0, 90.0, 90.0)
CHAIN = (0.0, 30.0, 60.0, 90.0, 120.0)


def stream(
    seed: int,
    degrees: Sequence[float] = TWO_GROUPS,
    *,
    norm: float = NORM,
    carried: float = 0.9,
    n: int = PAIRS,
    is_paired: bool = True,
) -> Activations:
    """One layer for each angle, in one plane; ``carried`` is the share of the noise that goes on.

    The stream also grows: layer l is 3^l times as large as layer 0.
    """
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0].T
    sides: list[dict[Layer, torch.Tensor]] = []
    for sign in (0.5, -0.5):
        noise = rng.normal(size=(n, WIDTH))
        kept: dict[Layer, torch.Tensor] = {}
        for layer, angle in enumerate(np.radians(degrees)):
            delta = norm * (np.cos(angle) * plane[0] + np.sin(angle) * plane[1])
            kept[layer] = torch.tensor(3.0**layer * (noise + sign * delta))[:, None]
            noise = carried * noise + np.sqrt(1 - carried**2) * rng.normal(size=(n, WIDTH))
        sides.append(kept)
    return activations_of(sides[0], sides[1], is_paired=is_paired)


def found(seed: int, *arguments: Any, **options: Any) -> Findings:
    return of(stream(seed, *arguments, **options), seed)


def of(activations: Activations, seed: int = 0, **options: Any) -> Findings:
    return cross_layer_alignment(activations, position=-1, permutations=19, seed=seed, **options)


def groups(here: Findings) -> list[list[Layer]]:
    return [each["layers"] for each in here.facts["groups"]]


def test_planted_groups_are_found() -> None:
    every = [found(seed) for seed in range(100)]
    assert sum(groups(each) == [[0, 1, 2], [3, 4]] for each in every) >= 80
    assert sum(each.estimates["mean_cosine"].verdict == "supported" for each in every) >= 80
    stable = [each.facts["groups"][0]["stability"] for each in every]
    assert np.mean(stable) > 0.9


def test_without_a_difference_nothing_is_aligned_though_noise_is_carried_on() -> None:
    every = [found(seed, norm=0.0) for seed in range(100)]
    assert np.mean([each.arrays["plain"][0, 1] for each in every]) > 0.8
    assert sum(each.estimates["mean_cosine"].verdict == "supported" for each in every) <= 10
    assert sum(len(each.facts["determined"]) > 1 for each in every) <= 10


def test_carried_noise_does_not_align_directions_at_right_angles() -> None:
    every = [found(seed, (0.0, 90.0), norm=2.0, carried=0.99) for seed in range(100)]
    assert np.mean([each.arrays["plain"][0, 1] for each in every]) > 0.2
    assert np.nanmean([each.arrays["cosine"][0, 1] for each in every]) == pytest.approx(0, abs=0.05)
    assert sum(each.estimates["mean_cosine"].verdict == "supported" for each in every) <= 10


def test_a_chain_of_small_turns_is_not_one_group() -> None:
    for seed in range(20):
        for group in groups(found(seed, CHAIN)):
            assert len(group) <= 2  # neighbours have a cosine of 0.87, the next of 0.5


def test_cosines_keep_their_sign() -> None:
    here = found(0, (0.0, 0.0, 180.0))
    assert here.arrays["cosine"][0, 2] < -0.9
    assert groups(here) == [[0, 1], [2]]


def test_intervals_cover_the_true_cosine() -> None:
    inside, truth = np.zeros(2), np.cos(np.radians([60.0, 0.0]))
    for seed in range(200):
        products = LayerProducts(stream(seed, (0.0, 60.0, 60.0), n=24), -1)
        drawn_again = products.products(products.resampled(np.random.default_rng(seed), 100))
        low, high = percentiles(cosines(drawn_again))
        for row, place in enumerate(((0, 1), (1, 2))):
            inside[row] += low[place] <= truth[row] <= high[place]
    assert (inside / 200 >= 0.92).all()


@pytest.mark.parametrize("is_paired", [True, False])
def test_products_are_those_of_disjoint_halves(is_paired: bool) -> None:
    activations = stream(0, n=8, is_paired=is_paired)
    products = LayerProducts(activations, -1)
    sides, halves = (activations.harmful, activations.harmless), []
    rng = np.random.default_rng(0)
    for _ in range(1500):
        orders = [rng.permutation(8) for _ in range(2)]
        if is_paired:
            orders[1] = orders[0]
        means = [
            [
                side.kept[layer][order[rows], 0].double().mean(0)
                for side, order in zip(sides, orders, strict=True)
            ]
            for layer, rows in ((0, slice(0, 4)), (4, slice(4, 8)))
        ]
        halves.append(float((means[0][0] - means[0][1]) @ (means[1][0] - means[1][1])))
    exact = products.products(products.once())[0]
    assert exact[0, 4] == pytest.approx(np.mean(halves), abs=4 * np.std(halves) / 1500**0.5)


def test_a_copy_of_a_prompt_does_not_meet_itself() -> None:
    activations = stream(0, norm=0.0, n=8)
    counts = np.array([3.0, 2.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    rows = [
        (activations.harmful.kept[layer] - activations.harmless.kept[layer])[:, 0].double().numpy()
        for layer in (1, 3)
    ]
    pairs = np.outer(counts, counts) * (1 - np.eye(8))
    expected = (pairs * (rows[0] @ rows[1].T)).sum() / pairs.sum()
    found_again = LayerProducts(activations, -1).products([counts[None]])[0]
    assert found_again[1, 3] == pytest.approx(expected, rel=1e-5)


def test_representatives_are_confirmed_by_what_distill_measured() -> None:
    def rank(layer: int, bypass: str, induce: str) -> dict[str, Any]:
        return {"layer": layer, "bypass": {"verdict": bypass}, "induce": {"verdict": induce}}

    control = control_of_layers(
        {
            "layers": [
                rank(0, "supported", "supported"),
                rank(1, "supported", "supported"),
                rank(2, "supported", "supported"),
                rank(3, "supported", "not_supported"),
                {"layer": 4, "bypass": None, "induce": None},
            ]
        }
    )
    assert control == {0: "supported", 1: "supported", 2: "supported",
                       3: "not_supported", 4: "undetermined"}  # fmt: skip
    here = of(stream(0), control=control)
    assert here.facts["groups"][0]["control"] == "supported"
    assert here.facts["groups"][1]["control"] != "supported"
    assert "shown to control refusal" in here.headline
    assert control_of_layers({"layers": []}) is None
    assert of(stream(0), no_control="no tokens").facts["causal"] == "no tokens"


def test_few_prompts_are_refused() -> None:
    with pytest.raises(MeasurementError, match="at least 8 of each class; there are 7"):
        found(0, n=7)


def test_it_is_drawn() -> None:
    shown = pictures(found(0))
    assert [each.title for each in shown] == [
        "Which layers share a direction",
        "How the direction turns",
    ]
    assert all(drawn(each).axes and interactive(each).data for each in shown)
    assert len(pictures(found(0, norm=0.0))) == 1
