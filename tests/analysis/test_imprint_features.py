"""Features say the same of a geometry at any scale, width, depth and number of prompts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.imprint_features import (
    DEPTHS,
    depth_row,
    features_code,
    imprint_features,
)
from obliteratus.errors import MeasurementError
from obliteratus.measure.head import head_of
from obliteratus.probe.activations import Activations
from obliteratus.probe.capture import probe
from obliteratus.shapes import Layer
from obliteratus.testing.planted_transformer import planted
from obliteratus.testing.streams import activations_of
from obliteratus.testing.tiny import tiny_model

WIDTH = 16
MODEL = tiny_model("llama", dtype=torch.float32)
HEAD = head_of(MODEL)
CATEGORIES = ("a", "b", "c", "d")


def stream(
    seed: int = 0,
    *,
    n: int = 400,
    layers: int = 4,
    turn: float = 0.0,
    norms: tuple[float, ...] = (0.0, 4.0, 4.0, 4.0),
    apart: float = 0.0,
    spread: float = 1.0,
    scale: float = 1.0,
    common: float = 0.0,
) -> Activations:
    """Unit noise, and a direction of length ``norms`` that turns by ``turn`` degrees a layer.

    ``apart`` is the length of what each category has of its own, ``common`` that of the mean.
    """
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.normal(size=(WIDTH, 8)))[0].T
    labels = [CATEGORIES[row % 4] for row in range(n)]
    own = apart * frame[3:7][[CATEGORIES.index(label) for label in labels]]
    sides: list[dict[Layer, torch.Tensor]] = [{}, {}]
    for layer in range(layers):
        angle = np.radians(turn * layer)
        axis = np.cos(angle) * frame[0] + np.sin(angle) * frame[1]
        length = norms[layer * len(norms) // layers]
        harmful = spread * rng.normal(size=(n, WIDTH)) + length * axis + (own if length else 0)
        for side, rows in zip(sides, (harmful, rng.normal(size=(n, WIDTH))), strict=True):
            side[layer] = torch.tensor(scale * (rows + common * frame[2]))[:, None]
    return activations_of(sides[0], sides[1], is_paired=False, categories=labels)


def found(**options: Any) -> dict[str, float]:
    return imprint_features(stream(**options), MODEL, HEAD)


def test_separation_is_the_share_that_classes_explain() -> None:
    here = found()
    assert here["separation at 1"] == pytest.approx(16 / (16 + 2 * WIDTH), abs=0.03)
    assert here["separation at 0.5"] == pytest.approx(here["separation at 1"], abs=0.03)
    assert found(norms=(0.0,) * 4)["separation at 1"] == pytest.approx(0, abs=0.01)


def test_few_prompts_do_not_look_separate() -> None:
    few = [found(seed=seed, n=32, norms=(0.0,) * 4)["separation at 1"] for seed in range(20)]
    assert np.mean(few) < 0.02  # uncorrected it is 2 WIDTH / 32 of 2 WIDTH (1 + 1 / 32): 0.03
    assert np.mean([value == 0 for value in few]) > 0.2


def test_features_do_not_depend_on_scale() -> None:
    plain, large = found(apart=2.0), found(apart=2.0, scale=1000.0)
    assert list(plain) == list(large)
    for name, value in plain.items():
        assert large[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_features_do_not_depend_on_depth() -> None:
    shallow, deep = found(common=20.0), found(common=20.0, layers=12)
    for name in shallow:
        if not name.startswith(("sure", "lens")):
            assert deep[name] == pytest.approx(shallow[name], abs=0.12), name


def test_the_crossing_is_where_the_separation_begins() -> None:
    assert found()["crossing"] == 0.25
    assert found(norms=(4.0,) * 4)["crossing"] == 0.0
    assert found(norms=(0.0, 0.0, 0.0, 4.0))["crossing"] == 0.75


def test_a_direction_that_turns_has_a_smaller_cosine() -> None:
    assert found()["turn at 0.5"] > 0.97
    turned = found(turn=30.0)  # blocks 1 and 3 are 60 degrees apart
    assert turned["turn at 0.5"] == pytest.approx(0.5, abs=0.06)
    assert turned["turn at 0.75"] == pytest.approx(np.cos(np.radians(30)), abs=0.06)


def test_rank_is_that_of_the_category_directions() -> None:
    assert found()["rank at 1"] == pytest.approx(0, abs=0.05)
    assert found(norms=(0.0, 0.1, 0.1, 0.1), apart=4.0)["rank at 1"] == pytest.approx(1, abs=0.05)
    assert 0.1 < found(apart=3.0)["rank at 1"] < 0.9


def test_spread_and_norm_compare_the_classes() -> None:
    wide = found(spread=2.0, norms=(0.0,) * 4)
    assert wide["spread at 1"] == pytest.approx(np.log(4), abs=0.1)
    assert wide["norm at 1"] == pytest.approx(np.log(2), abs=0.1)
    assert found(norms=(0.0,) * 4)["spread at 1"] == pytest.approx(0, abs=0.1)


def test_the_lens_sees_refusal_where_the_head_reads_it() -> None:
    plant = planted("linear", seed=1)
    model: Any = plant.model if hasattr(plant, "model") else plant
    activations = probe(model, plant.prompts(48))
    here = imprint_features(activations, model, head_of(model))
    assert here["lens at 0.5"] < 0.05
    assert here["lens at 1"] > 0.9
    assert 0.5 < here["sure_harmful"] <= 1


def test_depths_are_block_outputs() -> None:
    assert [depth_row(depth, 4) for depth in DEPTHS] == [1, 2, 3]
    assert [depth_row(depth, 32) for depth in DEPTHS] == [15, 23, 31]
    assert depth_row(0.5, 1) == 0


def test_code_has_a_hash() -> None:
    assert len(features_code()) == 64


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(MeasurementError, match="at least 8 prompts of each class; there are 7"):
        found(n=7)
    activations = stream(n=40)
    harmful = replace(activations.harmful, categories=("a",) * 40)
    with pytest.raises(MeasurementError, match="Add a column 'category'"):
        imprint_features(replace(activations, harmful=harmful), MODEL, HEAD)
