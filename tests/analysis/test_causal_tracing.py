"""Patches are exact, carry what was planted where it was planted, and nothing where nothing is."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.analysis import patching
from obliteratus.analysis.causal_tracing import causal_tracing, pictures
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.analysis.parts import parts, places
from obliteratus.analysis.patching import Patcher
from obliteratus.analysis.tracing import Traced, aligned_pairs, trace
from obliteratus.errors import MeasurementError
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.split import split
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import tokens_for
from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import PlantedTransformer, planted
from obliteratus.testing.tiny import tiny_model

FAMILIES = ("llama", "gemma2", "gpt2", "mixtral", "gemma3n_text", "mamba", "gptj", "granite",
            "falcon_h1", "bloom-normed")  # fmt: skip
TOKENS = RefusalTokens((5, 9, 70))
WEAK = 0.25  # of the planted swing: 3 log-odds between pairs, with noise of 0.6 on each
POOL, FEW = 48, 16  # pairs that are traced, and how many of them one experiment sees


def patcher(model: LoadedModel, tokens: RefusalTokens = TOKENS, prefix: Any = ()) -> Patcher:
    return Patcher(model, head_of(model), tokens, parts(model), prefix)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_later_layers_alone_give_what_all_layers_give(model_type: str) -> None:
    model = tiny_model(model_type)
    run = patcher(model)
    prompts = [tuple(row.tolist()) for row in tokens_for(model, n_prompts=4, length=9)]
    ours, theirs = (run.run(run.rows(side)) for side in (prompts[:2], prompts[2:]))
    changes: list[float] = []
    for place in places(model):
        found = run.patched(ours, place, theirs)
        assert torch.equal(found, run.patched(replace(ours, blocks={}), place, theirs))
        assert torch.equal(run.patched(ours, place, ours), ours.score)
        changes.append(float((found - ours.score).abs().max()))
    assert min(changes) > 1e-4
    assert torch.equal(run.run(ours.rows).score, ours.score)  # nothing was left behind


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mamba"])
def test_a_run_with_all_of_another_stream_ends_as_the_other(model_type: str) -> None:
    model = tiny_model(model_type)
    run = patcher(model)
    prompts = [tuple(row.tolist()) for row in tokens_for(model, n_prompts=2, length=9)]
    ours, theirs = (run.run(run.rows([prompt])) for prompt in prompts)
    last = model.anatomy.n_layers - 1
    with capture(model, [last]) as stream:
        run.score(theirs.rows)
        end = stream[last][:, -1].clone()
    assert torch.allclose(run.moved(ours, last, end), theirs.score, atol=1e-12)
    assert not torch.allclose(ours.score, theirs.score, atol=1e-3)


def test_a_shared_prefix_changes_no_score() -> None:
    model = tiny_model("llama")
    prompts = [tuple(row.tolist()) for row in tokens_for(model, n_prompts=2, length=12)]
    prompts = [(*prompts[0][:4], *prompt[4:]) for prompt in prompts]
    whole, cut = patcher(model), patcher(model, prefix=prompts[0][:4])
    scores = [each.score(each.rows(prompts)) for each in (whole, cut)]
    assert torch.allclose(scores[0], scores[1], atol=1e-12)
    ours, theirs = ([each.run(each.rows([p])) for each in (whole, cut)] for p in prompts)
    for place in places(model):
        found = [e.patched(a, place, b) for e, a, b in zip((whole, cut), ours, theirs, strict=True)]
        assert torch.allclose(found[0], found[1], atol=1e-12)


def test_blocks_that_pass_on_more_than_they_return_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    run = patcher(model)
    rows = run.rows([tuple(tokens_for(model)[0].tolist())])
    keep = patching._keep_blocks

    def forgetful(model: LoadedModel, into: dict[int, Any]) -> Any:
        yield from keep(model, into)
        yield model.module.register_forward_hook(lambda *_: None)

    monkeypatch.setattr(patching, "_keep_blocks", forgetful)
    run.run(rows)  # as it is there is nothing to find
    zero = patching.with_block_output
    monkeypatch.setattr(patching, "with_block_output", lambda out, x: zero(out, x * 0.5))
    with pytest.raises(MeasurementError, match="its blocks pass on more than they return"):
        run.run(rows)


def test_slopes_are_those_of_the_score() -> None:
    model = tiny_model("llama")
    with ExactFloat64():  # differences of 1e-5 need all of it
        run = patcher(model)
        rows = run.rows([tuple(tokens_for(model)[0].tolist())])
        ours = run.run(rows)
        _, slopes = run.gradients(rows)
        step = 1e-5
        for place in places(model):
            name = place.part.module
            noise = torch.randn(slopes[name].shape, dtype=torch.float64)
            nudged = replace(ours, given={name: ours.given[name] + step * noise})
            exact = float(run.patched(ours, place, nudged) - ours.score) / step
            along = slopes[name] * noise
            if place.head is not None:
                along = along[..., place.part.columns(place.head, along.shape[-1])]
            assert exact == pytest.approx(float(along.sum()), rel=1e-3, abs=1e-4)


def pool(variant: str, **changes: Any) -> tuple[PlantedTransformer, Traced]:
    plant = planted(variant, **changes)
    pairs = aligned_pairs(plant.model, plant.prompts(POOL), count=POOL)
    run = patcher(plant.model, plant.refusal_tokens, pairs.prefix)
    return plant, trace(run, places(plant.model), pairs)


linear = cache(lambda: pool("linear"))
weak = cache(lambda: pool("linear", effect=WEAK))
backup = cache(lambda: pool("backup"))
null = cache(lambda: pool("null"))
decodable = cache(lambda: pool("decodable_only"))


def some(traced: Traced, seed: int, count: int = FEW) -> Traced:
    rows = np.random.default_rng(seed).choice(POOL, size=count, replace=False)
    fields = ("harmful", "harmless", "denoised", "noised", "rise", "fall")
    return replace(traced, **{name: getattr(traced, name)[rows] for name in fields})


def found(traced: Traced, seed: int = 0) -> Findings:
    return causal_tracing(traced, permutations=99, seed=seed)


def chain(plant: PlantedTransformer, cause: str = "harm") -> set[str]:
    layer, head = plant.truth.heads[cause]
    columns = plant.truth.columns
    return {f"L{layer} H{head}", *(f"L{columns[role][0][0]} MLP" for role in ("writer", "reader"))}


def test_a_planted_chain_is_carried_whole_by_each_of_its_places() -> None:
    plant, traced = linear()
    seen = found(traced)
    shares = dict(zip(traced.names, seen.arrays["denoising"], strict=True))
    assert set(seen.facts["enough"]) == set(seen.facts["needed"]) == chain(plant)
    for name, share in shares.items():
        assert share == pytest.approx(float(name in chain(plant)), abs=0.03)


def test_a_weak_chain_is_found_in_few_pairs() -> None:
    plant, traced = weak()
    times = 0
    for seed in range(100):
        seen = found(some(traced, seed), seed)
        best = traced.names[int(seen.arrays["denoising"].argmax())]
        times += seen.estimates["denoising"].verdict == "supported" and best in chain(plant)
    assert times >= 80


def test_where_harm_is_not_refused_there_is_nothing() -> None:
    _, traced = null()
    verdicts = [
        [each.verdict for each in found(some(traced, seed), seed).estimates.values()]
        for seed in range(100)
    ]
    assert sum("supported" in each[:3] for each in verdicts) <= 10
    assert "there is nothing to trace" in found(traced).headline


def test_what_can_be_read_but_is_not_used_carries_nothing() -> None:
    plant, traced = decodable()
    seen = found(traced)
    reads_harm = traced.names.index("L{} H{}".format(*plant.truth.heads["harm"]))
    assert set(seen.facts["needed"]) == set(seen.facts["enough"][:3]) == chain(plant, "trigger")
    for way in ("denoising", "noising"):  # a shorter stream makes all else a little stronger
        assert seen.arrays[way][reads_harm] < 0.1


def test_a_backup_shows_as_enough_but_less_needed() -> None:
    plant, traced = backup()
    seen = found(traced)
    writer = traced.names.index(f"L{plant.truth.write_layer} MLP")
    assert seen.arrays["denoising"][writer] == pytest.approx(1.0, abs=0.05)
    assert seen.arrays["noising"][writer] == pytest.approx(1 - plant.truth.repair, abs=0.05)
    assert seen.arrays["noising_p"][writer] < 0.05


def test_positions_are_those_of_the_circuit() -> None:
    plant, traced = linear()
    seen = found(traced)
    by_role = seen.arrays["attribution_denoising"]
    writing = by_role[traced.names.index(f"L{plant.truth.write_layer} MLP")]
    assert traced.roles[-1] == "-1 '<assistant>'"
    assert writing[-1] == pytest.approx(1.0, abs=0.1)  # it writes at the last token only
    assert np.abs(writing[:-1]).max() < 0.03
    assert seen.estimates["attribution_agreement"].verdict == "supported"


def test_the_first_order_does_not_see_over_a_threshold() -> None:
    """The reason why it is never shown alone: what the head copies opens a gate that is shut."""
    plant, traced = linear()
    seen = found(traced)
    copying = traced.names.index("L{} H{}".format(*plant.truth.heads["harm"]))
    assert seen.arrays["denoising"][copying] > 0.95
    assert seen.arrays["attribution_denoising"][copying].sum() < 0.1


def test_recovery_is_a_ratio_of_sums_whatever_single_pairs_do() -> None:
    _, traced = linear()
    odd = replace(traced, harmless=traced.harmless.copy())
    odd.harmless[0] = odd.harmful[0] - 1e-9  # a pair without a swing: its own ratio is enormous
    shares = found(odd).arrays["denoising"]
    assert np.abs(shares).max() < 1.2


def test_only_pairs_of_equal_length_are_traced() -> None:
    plant = planted("linear")
    texts = [("describe vorn near", "describe bread near"), ("list old quib", "list chair")] * 4
    sides = [
        tuple(Prompt(f"p{i}", pair[side], None) for i, pair in enumerate(texts)) for side in (0, 1)
    ]
    pairs = aligned_pairs(plant.model, ContrastSet("x", *sides, is_paired=True), count=32)
    assert (len(pairs.harmful), pairs.offered) == (4, 8)
    with pytest.raises(MeasurementError, match="2 of 3 pairs have"):
        few = ContrastSet("x", sides[0][:3], sides[1][:3], is_paired=True)
        aligned_pairs(plant.model, few, count=32)
    with pytest.raises(MeasurementError, match="are no pairs"):
        aligned_pairs(plant.model, ContrastSet("x", *sides, is_paired=False), count=32)


def test_it_runs_on_a_bench_and_is_drawn() -> None:
    plant = planted("linear")

    bench = planted_bench(plant, split(plant.prompts(48)), prompts=8, permutations=99)
    seen = ANALYSES["causal_tracing"].run(bench)
    assert seen.facts["pairs"] == {"used": 8, "offered": 8}
    assert set(seen.facts["enough"]) == chain(plant)
    for picture in pictures(seen):
        assert drawn(picture).axes
        assert interactive(picture).data
