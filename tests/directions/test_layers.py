"""A layer is strong where it separates and controls, each beyond its null; else it is not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from obliteratus.directions.extraction import extraction
from obliteratus.directions.layer_control import (
    NULLS,
    LayerControl,
    beyond_nulls,
    controls_by_layer,
    null_bound,
    null_controls,
)
from obliteratus.directions.layers import LayerRank, rank_layers, shuffles, strong_layers
from obliteratus.directions.samples import samples_at
from obliteratus.directions.score import Scorer
from obliteratus.models.summon import summon
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings

N = 32


def apart(value: float, p_value: float = 0.0002) -> Comparison:
    value = float(value)
    return Comparison(
        Estimate(value, (value - 0.5, value + 0.5), n=N, null=0.0), p_value, "planted"
    )


def control(bypass: float, induce: float, seed: int = 0, spread: float = 0.5) -> LayerControl:
    """Effects that scatter by exactly ``spread`` over the prompts around their means."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, N))
    noise = spread * (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)
    return LayerControl(bypass + noise[0], induce + noise[1], np.full(N, 0.01))


NOTHING = [control(*np.random.default_rng(k).normal(size=2) * 0.1, seed=k) for k in range(NULLS)]


def ranked(
    separations: dict[int, Comparison],
    controls: dict[int, LayerControl],
    nulls: list[LayerControl] = NOTHING,
) -> dict[int, LayerRank]:
    return {rank.layer: rank for rank in rank_layers(separations, controls, nulls, seed=0)}


def test_a_layer_that_separates_and_controls_is_strong() -> None:
    found = ranked({0: apart(4), 1: apart(4)}, {0: control(0, 0), 1: control(3, 3)})
    assert found[1].standing == "strong"
    assert found[0].standing == "weak"
    assert strong_layers(tuple(found.values())) == (1,)


@pytest.mark.parametrize(
    ("separation", "effects"),
    [(apart(0.1, 0.8), (3, 3)), (apart(4), (0, 3)), (apart(4), (3, 0)), (apart(4), (-3, 3))],
    ids=["no separation", "no bypass", "no induce", "more refusal"],
)
def test_each_of_the_three_is_asked_for(
    separation: Comparison, effects: tuple[float, float]
) -> None:
    assert ranked({0: separation}, {0: control(*effects)})[0].standing != "strong"
    assert ranked({0: apart(4)}, {0: control(3, 3)})[0].standing == "strong"


def test_an_effect_beyond_zero_but_not_beyond_random_vectors_is_none() -> None:
    noisy = [control(k / 2, k / 2, seed=k) for k in range(NULLS)]
    found = ranked({0: apart(4)}, {0: control(1.5, 3, spread=0.05)}, noisy)[0]
    assert found.bypass is not None
    assert found.bypass.interval[0] > 1
    assert found.bypass.null == pytest.approx(null_bound(np.arange(NULLS) / 2))
    assert found.bypass.verdict == "not_supported"
    assert ranked({0: apart(4)}, {0: control(1.5, 3, spread=0.05)})[0].standing == "strong"


def test_many_layers_ask_for_more_evidence_from_each() -> None:
    """Holm: what one layer alone supports, twenty layers without an effect do not."""
    marginal = control(0.7, 3, spread=1.0)
    alone = ranked({0: apart(4)}, {0: marginal})
    assert alone[0].standing == "strong"
    others = range(1, 20)
    among = ranked(
        {0: apart(4), **{layer: apart(0.0, 0.5) for layer in others}},
        {0: marginal, **{layer: control(0, 0, seed=layer) for layer in others}},
    )
    assert among[0].bypass is not None
    assert among[0].bypass.verdict == "undetermined"
    assert among[0].standing == "undetermined"


def test_a_clear_effect_is_seen_among_twenty_layers() -> None:
    found = ranked(
        {layer: apart(4, 1 / (1 + shuffles(20))) for layer in range(20)},
        {layer: control(3, 3, seed=layer) for layer in range(20)},
    )
    assert all(rank.standing == "strong" for rank in found.values())


def test_a_small_share_of_the_best_is_weak() -> None:
    best = {0: apart(4), 1: apart(4)}
    assert ranked(best, {0: control(6, 6), 1: control(2.5, 6)})[1].standing == "weak"
    assert ranked(best, {0: control(6, 6), 1: control(6, 2.5)})[1].standing == "weak"
    assert ranked(best, {0: control(6, 6), 1: control(3.5, 3.5)})[1].standing == "strong"
    both = {0: control(6, 6), 1: control(6, 6)}
    assert ranked({0: apart(4), 1: apart(2.9)}, both)[1].standing == "weak"
    assert ranked({0: apart(4), 1: apart(3.1)}, both)[1].standing == "strong"


def test_without_evidence_no_layer_is_strong() -> None:
    found = ranked(
        {layer: apart(0.1, 0.4) for layer in range(5)},
        {layer: control(0, 0, seed=layer, spread=3) for layer in range(5)},
    )
    assert strong_layers(tuple(found.values())) == ()
    assert found[0].standing == "undetermined"


def test_logits_that_overflow_leave_a_layer_undetermined() -> None:
    broken = dataclasses.replace(control(3, 3), induce=np.full(N, np.nan))
    found = ranked({0: apart(4), 1: apart(4)}, {0: broken, 1: control(3, 3)})
    assert found[0].standing == "undetermined"
    assert found[0].bypass is None
    assert found[1].standing == "strong"


def test_too_few_random_vectors_leave_control_undetermined() -> None:
    found = ranked({0: apart(4)}, {0: control(3, 3)}, NOTHING[:2])[0]
    assert found.standing == "undetermined"
    assert found.bypass is None


def test_a_rank_survives_json() -> None:
    for rank in ranked({0: apart(4)}, {0: control(3, 3)}).values():
        assert LayerRank.from_json(rank.as_json()) == rank


def test_the_bound_holds_for_a_further_vector_95_times_in_100() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(4000, NULLS + 1))
    held = [draw[-1] <= null_bound(draw[:-1]) for draw in draws]
    assert 0.94 <= np.mean(held) <= 0.965  # never below 0, which holds a little more often
    assert null_bound(np.full(NULLS, -3.0)) == 0


def test_the_p_value_is_of_the_side_above_the_bound() -> None:
    values = control(1.0, 0).bypass
    assert beyond_nulls(values, 0.0, seed=0, permutations=4999).p_value < 0.001
    assert beyond_nulls(values, 2.0, seed=0, permutations=4999).p_value == 1


@pytest.fixture(scope="module")
def laboratory(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    settings = tiny_settings(refuser, "basic")
    store = Store(tmp_path_factory.mktemp("store"))
    model = summon(str(refuser), settings.model, store=store)
    return Laboratory(model, split(contrast_set(settings.prompts)), settings, store)


def test_the_layers_of_a_model_that_refuses_are_ranked(laboratory: Laboratory) -> None:
    activations, _ = laboratory.probed()
    tokens = laboratory.refusal_tokens(activations)
    for selection in ("published", "per_layer"):
        distill = laboratory.settings.distill.model_copy(update={"selection": selection})
        settings = laboratory.settings.model_copy(update={"distill": distill})
        other = Laboratory(laboratory.model, laboratory.splits, settings, laboratory.store)
        found, _ = other.distilled(activations, tokens)
        ranks = [LayerRank.from_json(each) for each in found.provenance["layers"]]
        assert [rank.layer for rank in ranks] == [0, 1, 2]
        assert found.strong_layers == strong_layers(ranks) != ()


def test_what_separates_but_does_not_control_is_not_strong(laboratory: Laboratory) -> None:
    """The same directions, judged by tokens that no refusal begins with."""
    activations, _ = laboratory.probed()
    tokens = laboratory.refusal_tokens(activations)
    vocabulary = range(len(laboratory.model.tokenizer))
    idle = [token for token in vocabulary if token not in tokens.ids][40:43]
    other = dataclasses.replace(tokens, ids=tuple(idle))
    scorer = laboratory.scorer(other)
    extract = extraction("difference_of_means")
    controls = controls_by_layer(activations, scorer, extract, -1, known={})
    nulls = null_controls(activations, scorer, -1, seed=0)
    ranks = rank_layers({layer: apart(4) for layer in controls}, controls, nulls, seed=0)
    assert strong_layers(ranks) == ()


def test_random_vectors_are_as_long_as_the_differences_of_the_blocks(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations, _ = laboratory.probed()
    scorer = laboratory.scorer(laboratory.refusal_tokens(activations))
    seen: list[tuple[int, float]] = []
    score = Scorer.candidate

    def watched(self: Scorer, layer, position, samples, removed):
        seen.append((layer, float(samples.delta.norm())))
        assert float(removed.basis[0] @ samples.delta) == pytest.approx(seen[-1][1])
        return score(self, layer, position, samples, removed)

    monkeypatch.setattr(Scorer, "candidate", watched)
    first = null_controls(activations, scorer, -1, seed=0)
    assert len(first) == NULLS
    for layer, length in seen:
        assert length == pytest.approx(float(samples_at(activations, layer, -1).delta.norm()))
    assert {layer for layer, _ in seen} == {0, 1, 2}
    again = null_controls(activations, scorer, -1, seed=0)
    np.testing.assert_array_equal(first[3].bypass, again[3].bypass)
