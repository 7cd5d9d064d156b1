"""The contrast is found at the position where it was planted, and attention sinks do not win."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis.findings import Findings
from obliteratus.analysis.multi_token_position import (
    multi_token_position,
    pictures,
    usable_positions,
)
from obliteratus.analysis.position_ablation import (
    EARLIER,
    PositionAblation,
    position_ablation,
    removing,
)
from obliteratus.errors import MeasurementError
from obliteratus.measure.log_odds import refusal_log_odds
from obliteratus.models.chat import encode
from obliteratus.operator.steering import steering
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.store import Store
from obliteratus.testing.bench import bench
from obliteratus.testing.streams import activations_of

WIDTH, PAIRS = 32, 24


def stream(
    seed: int,
    *,
    effect: float = 3.0,
    sink: float = 1.0,
    rogue: float = 1.0,
    n: int = PAIRS,
    positions: int = 3,
    is_paired: bool = True,
) -> Activations:
    """Noise in two layers; harm shows at layer 1 and the position before the last.

    The first position is a sink: ``sink`` times as long, with prompts that differ in length, and
    one coordinate that is longer still. ``rogue`` multiplies a coordinate of all positions.
    """
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    sides: list[dict[Layer, torch.Tensor]] = []
    for sign in (0.5, -0.5):
        kept: dict[Layer, torch.Tensor] = {}
        for layer in range(2):
            noise = rng.normal(size=(n, positions, WIDTH))
            if sink > 1:
                noise[:, 0] *= sink * rng.lognormal(0, 1, size=(n, 1))
                noise[:, 0, 5] = 20 * sink * (1 + 0.1 * rng.normal(size=n))
            if layer == 1:
                noise[:, max(-2, -positions)] += sign * effect * direction
            noise[..., 3] *= rogue
            kept[layer] = torch.tensor(noise)
        sides.append(kept)
    return activations_of(sides[0], sides[1], is_paired=is_paired)


def found(seed: int, **options: Any) -> Findings:
    return multi_token_position(stream(seed, **options), permutations=99, seed=seed)


def shown(here: Findings) -> list[str]:
    return [name for name, each in here.estimates.items() if each.verdict == "supported"]


def test_the_contrast_is_found_where_it_was_planted() -> None:
    every = [found(seed) for seed in range(100)]
    assert sum(shown(each) == ["position -2"] for each in every) >= 80
    assert sum(each.facts["best_layers"]["-2"] == 1 for each in every) >= 95


def test_without_a_contrast_no_position_shows_one() -> None:
    assert sum(bool(shown(found(seed, effect=0.0))) for seed in range(100)) <= 10


def test_attention_sinks_do_not_win() -> None:
    every = [found(seed, sink=300.0) for seed in range(50)]
    raw = [each.arrays["raw_delta"] for each in every]
    assert all(each.argmax(axis=1).tolist() == [0, 0] for each in raw)  # the raw map is the sink's
    assert sum(shown(each) == ["position -2"] for each in every) >= 40
    assert sum("position -3" in shown(each) for each in every) <= 5


def test_one_enormous_coordinate_hides_nothing() -> None:
    assert sum(shown(found(seed, rogue=1e3)) == ["position -2"] for seed in range(20)) >= 16


def test_unpaired_prompts_are_compared_too() -> None:
    assert shown(found(0, is_paired=False)) == ["position -2"]


def test_a_position_that_begins_a_prompt_is_left_out() -> None:
    activations = stream(0, positions=4)
    assert usable_positions(activations, None) == (-4, -3, -2, -1)
    here = multi_token_position(activations, permutations=19, seed=0, shortest=4)
    assert here.facts["left_out"] == [-4]
    assert here.facts["positions"] == [-3, -2, -1]
    with pytest.raises(MeasurementError, match="the shortest has 2 tokens"):
        usable_positions(activations, 2)


def test_one_position_is_refused_with_what_to_set() -> None:
    with pytest.raises(MeasurementError, match=r"Set probe\.positions=post_instruction"):
        found(0, positions=1)
    with pytest.raises(MeasurementError, match="at least 8 prompts of each class; there are 7"):
        found(0, n=7)


def ablated(falls: dict[Any, float], *, seed: int = 0) -> PositionAblation:
    rng = np.random.default_rng(seed)

    def around(mean: float) -> np.ndarray:
        return mean + rng.normal(size=24) * 0.5

    return PositionAblation(
        untouched=around(3.0),
        removed=around(-3.0),
        random_removed=around(3.0),
        spared={place: around(-3.0 + fall) for place, fall in falls.items()},
        random_spared={place: around(3.0) for place in falls},
    )


def test_positions_that_undo_the_removal_are_named_and_others_are_not() -> None:
    falls: dict[Any, float] = {-3: 0.0, -2: 4.0, -1: 0.0, EARLIER: 0.0}
    hits, false = 0, 0
    for seed in range(100):
        verdicts = {
            name: each.verdict
            for name, each in ablated(falls, seed=seed).estimates(seed=seed).items()
        }
        hits += verdicts["spared -2"] == "supported"
        false += any(verdicts[f"spared {place}"] == "supported" for place in (-3, -1, EARLIER))
    assert hits >= 32
    assert false <= 4


def test_sparing_positions_changes_just_what_it_should(
    refuser: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = bench(refuser, Store(tmp_path_factory.mktemp("store")))
    model, tokens = made.model, made.scorer.tokens
    assert tokens is not None
    texts = [prompt.text for prompt in made.splits.select.harmful[:8]]
    encoded = encode(model, texts)
    basis = made.start.basis
    here = position_ablation(model, encoded, tokens, basis, (-2, -1), seed=0)
    np.testing.assert_allclose(
        here.untouched, refusal_log_odds(model, encoded, tokens).numpy(), atol=1e-4
    )
    with steering(model, basis, kind="projection"):
        everywhere = refusal_log_odds(model, encoded, tokens).numpy()
    np.testing.assert_allclose(here.removed, everywhere, atol=1e-4)
    assert here.untouched.mean() - here.removed.mean() > 1
    # no token is earlier than as many positions as there are tokens: nothing is spared
    with removing(model, basis, spared=EARLIER, count=len(encoded.ids[0])):
        first = model.module(torch.tensor([encoded.ids[0]])).logits
    with steering(model, basis, kind="projection"):
        assert torch.allclose(first, model.module(torch.tensor([encoded.ids[0]])).logits, atol=1e-4)
    assert set(here.spared) == {-2, -1, EARLIER}
    assert any(np.abs(values - here.removed).max() > 0.1 for values in here.spared.values())
    with pytest.raises(MeasurementError, match="positions are to be spared one by one"):
        position_ablation(model, encoded, tokens, basis, (-99, -1), seed=0)


def test_it_is_drawn_with_and_without_the_causal_half() -> None:
    activations = stream(0, sink=300.0)
    ablation = ablated({-3: 0.0, -2: 4.0, -1: 0.0, EARLIER: 0.0})
    plain = multi_token_position(activations, permutations=39, seed=0, no_ablation="no tokens")
    whole = multi_token_position(activations, permutations=39, seed=0, ablation=ablation)
    assert plain.facts["no_causal"] == "no tokens"
    assert "not tested" in plain.headline
    assert "acts from -2" in whole.headline
    assert len(pictures(plain)) == 2
    made = pictures(whole)
    assert len(made) == 3
    assert all(drawn(each).axes and interactive(each).data for each in made)
