"""The lens crosses where the head can read refusal; patching says whether it is decided there."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from obliteratus.analysis.findings import Findings
from obliteratus.analysis.lens import (
    Moved,
    Seen,
    last_streams,
    move_streams,
    prefix_of,
    seen_by_the_head,
)
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.patching import Patcher
from obliteratus.analysis.refusal_logit_lens import crossing, pictures, refusal_logit_lens
from obliteratus.errors import MeasurementError
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import refusal_log_odds
from obliteratus.models.chat import encode
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.prompts.split import split
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import PlantedTransformer, planted

WEAK = 0.15  # of the planted swing: 1.8 log-odds between the classes
POOL, FEW = 48, 16
Pool = tuple[PlantedTransformer, Seen, Seen, Moved]


def pool(variant: str, effect: float = 1.0) -> Pool:
    plant = planted(variant, effect=effect)
    prompts = plant.prompts(POOL)
    sides = [
        encode(plant.model, [prompt.text for prompt in side])
        for side in (prompts.harmful, prompts.harmless)
    ]
    head, tokens = head_of(plant.model), plant.refusal_tokens
    streams = [last_streams(plant.model, side) for side in sides]
    seen = [seen_by_the_head(plant.model, head, tokens, each) for each in streams]
    patcher = Patcher(plant.model, head, tokens, (), prefix_of(*sides))
    return plant, seen[0], seen[1], move_streams(patcher, sides[0], sides[1], streams[0])


linear = cache(lambda: pool("linear"))
weak = cache(lambda: pool("linear", WEAK))
null = cache(lambda: pool("null"))


def found(given: Pool, seed: int = 0, count: int = POOL, *, is_paired: bool = True) -> Findings:
    rows = np.random.default_rng(seed).choice(POOL, size=count, replace=False)
    _, harmful, harmless, moved = given
    sides = [Seen(side.log_odds[rows], side.rank[rows]) for side in (harmful, harmless)]
    some = Moved(moved.harmful[rows], moved.harmless[rows], moved.patched[rows])
    return refusal_logit_lens(
        sides[0], sides[1], some, is_paired=is_paired, permutations=99, seed=seed
    )


def test_the_last_layer_of_the_lens_is_what_the_model_says() -> None:
    plant, harmful, _, moved = linear()
    texts = [prompt.text for prompt in plant.prompts(POOL).harmful]
    said = refusal_log_odds(plant.model, encode(plant.model, texts), plant.refusal_tokens).numpy()
    np.testing.assert_allclose(harmful.log_odds[:, -1], said, atol=1e-4)
    np.testing.assert_allclose(moved.harmful, said, atol=1e-4)
    np.testing.assert_allclose(moved.patched[:, -1], said, atol=1e-4)
    np.testing.assert_allclose(moved.patched[:, 0], moved.harmless, atol=1e-4)  # the same token


def test_a_planted_reader_is_where_the_lens_crosses() -> None:
    plant, *_ = linear()
    seen = found(linear())
    assert seen.estimates["crossing_layer"].value == plant.truth.read_layer
    assert seen.facts["refusal_leads_from"] == plant.truth.read_layer


def test_a_crossing_is_not_called_a_decision_where_patching_says_otherwise() -> None:
    plant, *_ = linear()
    seen = found(linear())
    assert seen.estimates["patching_layer"].value == plant.truth.heads["harm"][0]
    assert seen.estimates["lens_minus_patching"].verdict == "not_supported"
    assert "not decided there: the last token carries it from layer 1 on" in seen.headline


def test_a_weak_reader_is_found_in_few_prompts() -> None:
    plant, *_ = weak()
    times = 0
    for seed in range(100):
        seen = found(weak(), seed, FEW).estimates
        crossed = seen.get("crossing_layer")
        times += crossed is not None and crossed.value == plant.truth.read_layer
    assert times >= 80


@pytest.mark.parametrize("is_paired", [True, False])
def test_where_harm_is_not_refused_nothing_crosses(is_paired: bool) -> None:
    seen = [found(null(), seed, FEW, is_paired=is_paired) for seed in range(100)]
    assert sum("crossing_layer" in each.estimates for each in seen) <= 10
    assert all("do not differ" in each.headline for each in seen if len(each.estimates) == 1)


def test_a_token_that_is_always_near_the_top_is_no_crossing() -> None:
    """From layer 0 on the refusal token is second to the compliant one, whatever is asked."""
    seen = found(linear())
    assert seen.facts["first_top_5"] == 0
    assert np.abs(seen.arrays["contrast"][:5]).max() < 0.1 * seen.arrays["contrast"][-1]
    assert seen.estimates["crossing_layer"].value == 4


def curves(carried: int, crossed: int, n: int = 24) -> Findings:
    """Make runs of eight layers whose lens crosses at one layer and that carry from another on."""
    rng = np.random.default_rng(0)
    layers = np.arange(9)

    def noise(*shape: int) -> np.ndarray:
        return 0.3 * rng.standard_normal(shape)

    rank = np.zeros((n, 9))
    harmful = Seen(np.where(layers > crossed, 6.0, 0.0) + noise(n, 9), rank)
    swing = 6 + noise(n)
    moved = Moved(swing, np.zeros(n), swing[:, None] * (layers > carried) + noise(n, 9))
    return refusal_logit_lens(
        harmful, Seen(noise(n, 9), rank), moved, is_paired=True, permutations=99, seed=0
    )


def test_patching_that_agrees_confirms_the_crossing() -> None:
    agreed = curves(carried=3, crossed=3)
    assert agreed.estimates["lens_minus_patching"].verdict == "supported"
    assert "patching agrees: from layer 3 on" in agreed.headline
    assert curves(carried=1, crossed=5).estimates["lens_minus_patching"].verdict == "not_supported"


def test_without_patching_it_stays_unconfirmed() -> None:
    _, harmful, harmless, _ = linear()
    seen = refusal_logit_lens(harmful, harmless, None, is_paired=True, permutations=99, seed=0)
    assert seen.headline.endswith("whether it is decided there is unconfirmed.")


def test_a_curve_crosses_where_it_stays_above_half_of_its_end() -> None:
    shown = np.array([[0.0, 9.0, 0.0, 6.0, 8.0], [5.0, 5.0, 5.0, 5.0, 5.0], [0.0, 0, 0, 0, 1]])
    assert crossing(shown).tolist() == [2.0, -1.0, 3.0]


def test_broken_logits_are_refused() -> None:
    _, harmful, harmless, _ = linear()
    broken = replace(harmful, log_odds=np.full_like(harmful.log_odds, np.nan))
    with pytest.raises(MeasurementError, match="NaN or infinite"):
        refusal_logit_lens(broken, harmless, None, is_paired=True, permutations=19, seed=0)


def test_it_runs_on_a_bench_and_is_drawn() -> None:
    plant = planted("linear")

    bench = planted_bench(plant, split(plant.prompts(48)), prompts=8, permutations=99)
    state = {name: value.clone() for name, value in plant.model.module.state_dict().items()}
    seen = ANALYSES["refusal_logit_lens"].run(bench)
    assert seen.estimates["crossing_layer"].value == 4
    for picture in pictures(seen):
        assert drawn(picture).axes
        assert interactive(picture).data
    after = plant.model.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
