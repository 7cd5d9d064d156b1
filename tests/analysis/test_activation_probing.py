"""Harm is read where it was planted, nowhere else, and whatever the stream's size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.activation_probing import activation_probing, auc_interval, pictures
from obliteratus.errors import MeasurementError
from obliteratus.pictures.drawn import drawn
from obliteratus.probe.activations import Activations, ClassActivations, Moments
from obliteratus.shapes import Layer

WIDTH, PROMPTS, PERMUTATIONS = 32, 48, 99
LAYERS: tuple[Layer, ...] = ("embedding", 0, 1, 2)
EFFECT = 2.0  # standard deviations between the class means, at layer 2 and position -1


def stream(
    seed: int, *, effect: float = EFFECT, scale: float = 1.0, rogue: float = 1.0, n: int = PROMPTS
) -> Activations:
    """Noise at two positions of four layers; harm shows at layer 2 and the last position only.

    ``scale`` multiplies the stream of later layers, ``rogue`` one coordinate of all.
    """
    source = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=source), dim=0)
    sides: list[Mapping[Layer, torch.Tensor]] = []
    for sign in (1, -1):
        kept: dict[Layer, torch.Tensor] = {}
        for place, layer in enumerate(LAYERS):
            noise = torch.randn(n, 2, WIDTH, generator=source)
            if layer == 2:
                noise[:, 1] += sign * effect / 2 * direction
            noise[..., 0] *= rogue
            kept[layer] = noise * scale**place
        sides.append(kept)
    return Activations(*map(_side, sides), positions=(-2, -1), is_paired=True, fingerprint="x")


def _side(kept: Mapping[Layer, torch.Tensor]) -> ClassActivations:
    n = len(next(iter(kept.values())))
    none = torch.zeros(2, WIDTH, dtype=torch.float64)
    moments = {layer: Moments(n, none, none) for layer in kept}
    ids = tuple(str(row) for row in range(n))
    return ClassActivations(ids, (None,) * n, moments, kept)


def found(seed: int, **options: Any):
    return activation_probing(stream(seed, **options), permutations=PERMUTATIONS, seed=seed)


def hits(**options: Any) -> int:
    return sum(found(seed, **options).estimates["best_auc"].verdict == "supported"
               for seed in range(100))  # fmt: skip


def test_planted_separation_is_found_where_it_was_planted() -> None:
    places = [
        each.facts["best"]
        for each in map(found, range(100))
        if each.estimates["best_auc"].verdict == "supported"
    ]
    assert len(places) >= 80
    assert sum(place == {"layer": 2, "position": -1} for place in places) >= 80


def test_without_a_difference_there_is_nothing() -> None:
    assert hits(effect=0.0) <= 10


def test_a_growing_stream_and_a_rogue_coordinate_change_nothing() -> None:
    plain, scaled = found(1), found(1, scale=30.0, rogue=1e4)
    np.testing.assert_allclose(plain.arrays["auc"], scaled.arrays["auc"], atol=0.02)
    assert hits(effect=0.0, scale=30.0, rogue=1e4) <= 10


def test_the_interval_of_the_auc_covers_the_truth() -> None:
    rng, inside = np.random.default_rng(0), 0
    truth = 0.7602499389065233  # of two normals one standard deviation apart: Φ(1 / √2)
    for _ in range(400):
        common = rng.normal(size=60)  # what a pair shares: half of each variance
        sides = [common * 0.5**0.5 + rng.normal(size=60) * 0.5**0.5 + shift for shift in (1, 0)]
        _, (low, high) = auc_interval(sides[0], sides[1], is_paired=True)
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_a_perfect_score_has_an_interval() -> None:
    value, (low, high) = auc_interval(np.arange(20.0) + 100, np.arange(20.0), is_paired=True)
    assert value == high == 1.0
    assert 0.7 < low < 1.0


def test_few_prompts_are_refused() -> None:
    with pytest.raises(MeasurementError, match="at least 10 prompts of each class; there are 9"):
        found(0, n=9)


def test_it_is_drawn() -> None:
    shown = pictures(found(0))
    assert [picture.title for picture in shown] == [
        "Where harm can be read",
        "Where harm can be read, by position",
    ]
    assert all(drawn(picture).axes for picture in shown)
