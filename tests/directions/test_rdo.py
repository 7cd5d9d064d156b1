"""Refusal direction optimisation lowers its losses, and with them refusal, on prompts unseen."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.directions.permuted import (
    permuted,
    permuted_directions,
    permuted_prompts,
)
from obliteratus.directions.rdo import rdo
from obliteratus.directions.rdo_objective import first_sentence
from obliteratus.directions.samples import samples_at
from obliteratus.directions.score import Scorer
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, UsageError
from obliteratus.models.chat import encode
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.contrast import ContrastSet, Splits
from obliteratus.settings import RdoSettings
from obliteratus.store import Store
from obliteratus.testing.bench import Bench, bench
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.refuser import REFUSAL, tiny_settings

SETTINGS = RdoSettings(steps=12, prompts=6, check_every=6, target_tokens=6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def case(refuser: Path, store: Store) -> Bench:
    return bench(refuser, store)


def optimised(case: Bench, settings: RdoSettings = SETTINGS, **more: object) -> Directions:
    more = {"max_kl": 5.0, **more}
    objective = case.objective(settings)
    return rdo(case.start, case.scorer, objective, settings, **more)  # pyright: ignore


@pytest.fixture(scope="module")
def result(case: Bench) -> Directions:
    shuffled = permuted_directions(case.activations, case.start, 0)
    null = case.objective(SETTINGS, start=shuffled, fit=permuted_prompts(case.fit, 0))
    return optimised(case, null=null)


@pytest.mark.parametrize("name", ["ablation", "addition", "retain"])
def test_the_gradient_of_each_loss_agrees_with_finite_differences(
    refuser: Path, store: Store, name: str
) -> None:
    case = bench(refuser, store, "model.dtype=float64")
    objective = case.objective(SETTINGS)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, generator=generator, dtype=torch.float64) / 10
    direction = (objective.start + noise).requires_grad_()

    def loss() -> torch.Tensor:
        return getattr(objective, name)(direction, [0, 3])

    with ExactFloat64():
        objective.prepare([0, 3], [0, 3])
        loss().backward()
        assert direction.grad is not None
        for place in (2, 17):
            step = torch.zeros(32, dtype=torch.float64)
            step[place] = 1e-5
            with torch.no_grad():
                direction.add_(step)
                above = float(loss())
                direction.sub_(2 * step)
                below = float(loss())
                direction.add_(step)
            slope = (above - below) / 2e-5
            assert abs(slope) > 1e-4
            assert float(direction.grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_start_explains_its_own_answers_best_and_no_edit_diverges_by_nothing(
    case: Bench,
) -> None:
    objective = case.objective(SETTINGS)
    objective.prepare([0, 1], [0, 1])
    other = torch.zeros(32, dtype=torch.float64)
    other[5] = 1
    for loss in (objective.ablation, objective.addition):
        assert float(loss(objective.start, [0, 1])) < float(loss(other, [0, 1])) - 0.1
    assert float(objective.retain(0 * other, [0, 1])) == pytest.approx(0, abs=1e-5)
    assert float(objective.retain(objective.start, [0, 1])) > 1e-3


def test_no_steps_give_the_start(case: Bench) -> None:
    found = optimised(case, SETTINGS.model_copy(update={"steps": 0}))
    for layer, basis in case.start.basis.items():
        torch.testing.assert_close(found.basis[layer], basis)


def test_the_optimised_direction_ends_more_refusal_at_no_more_divergence(
    case: Bench, result: Directions
) -> None:
    before, after = case.scorer.effect(case.start.basis), case.scorer.effect(result.basis)
    assert after.log_odds.mean() < before.log_odds.mean() - 0.3
    assert after.kl.mean() <= before.kl.mean()
    facts = result.provenance["rdo"]
    assert facts["cones"][0]["best_step"] > 0
    vector = facts["cones"][0]["vectors"][0]
    assert vector["bypass"] == pytest.approx(after.log_odds.mean(), abs=1e-4)
    assert vector["induce"] > 0


def test_shuffled_labels_give_no_direction_that_ends_refusal(
    case: Bench, result: Directions
) -> None:
    null = result.provenance["rdo"]["null"]["vectors"][0]
    start = case.scorer.effect(case.start.basis).log_odds.mean()
    assert null["bypass"] > start + 1
    gain = result.provenance["rdo"]["cones"][0]["vectors"][0]["bypass_gain"]
    assert gain["interval"][1] < -1  # beyond the null, prompt by prompt


def test_the_weights_are_left_alone(case: Bench) -> None:
    before = {name: each.clone() for name, each in case.model.module.named_parameters()}
    optimised(case, SETTINGS.model_copy(update={"steps": 1, "prompts": 2}))
    for name, parameter in case.model.module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in case.model.module.modules())


def test_the_same_seed_gives_the_same_direction(case: Bench) -> None:
    settings = SETTINGS.model_copy(update={"steps": 1, "prompts": 2})
    one, same, other = (optimised(case, settings, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.basis[0], same.basis[0])
    assert not torch.equal(one.basis[0], other.basis[0])


def test_a_direction_beyond_the_divergence_allowed_is_not_used(case: Bench) -> None:
    settings = SETTINGS.model_copy(update={"steps": 1, "prompts": 2})
    found = optimised(case, settings, max_kl=1e-6)
    assert found.provenance["rdo"]["cones"][0]["best_step"] == 0
    assert found.provenance["rdo"]["cones"][0]["kept"] is False
    torch.testing.assert_close(found.basis[0], case.start.basis[0])


def test_patience_ends_what_does_not_improve(case: Bench) -> None:
    still = {"rate": 0.0, "check_every": 1, "patience": 2, "prompts": 2}
    found = optimised(case, SETTINGS.model_copy(update=still))
    checks = found.provenance["rdo"]["cones"][0]["checks"]
    assert [check["step"] for check in checks] == [0, 1, 2]


def test_the_plan_does_to_weights_what_optimisation_saw_under_hooks(
    case: Bench, result: Directions
) -> None:
    texts = [prompt.text for prompt in case.fit.harmful[:4]]
    encoded = encode(case.model, texts)
    states = []
    for edits in (removal(case.model, result.basis), plan(case.model, result)):
        with edited(case.model, edits):
            states.append(last_hidden(case.model, encoded, task="test"))
    torch.testing.assert_close(states[0], states[1])


def test_no_answer_is_written_anywhere(case: Bench, result: Directions) -> None:
    written = json.dumps(result.provenance, allow_nan=False)
    for text in (REFUSAL[:12], "Sure", "help"):
        assert text not in written
    objective = case.objective(SETTINGS)
    objective.prepare([0], [0])
    target = objective._ablated[0].targets  # pyright: ignore
    assert str(list(target))[1:-1] not in written


def test_refusals_are_cut_before_the_end_of_their_first_sentence() -> None:
    text = "I cannot. Ask."
    assert first_sentence(range(len(text)), lambda ids: text[: len(ids)]) == len("I cannot")
    assert first_sentence(range(8), lambda ids: text[: len(ids)]) == 8
    assert first_sentence(range(3), lambda ids: ".ab"[: len(ids)]) == 1


@pytest.mark.parametrize("is_paired", [True, False])
def test_prompts_are_shuffled_as_their_activations_are(case: Bench, *, is_paired: bool) -> None:
    fit = replace(case.fit, is_paired=is_paired)
    samples = replace(samples_at(case.activations, 1, -1), is_paired=is_paired)
    labels = {prompt.id + prompt.text: row for row, prompt in enumerate(fit.harmful)}
    labels |= {prompt.id + prompt.text: 32 + row for row, prompt in enumerate(fit.harmless)}
    both = torch.cat([samples.harmful, samples.harmless])
    dealt, moved = permuted_prompts(fit, 3), permuted(samples, 3)
    order = [labels[prompt.id + prompt.text] for prompt in (*dealt.harmful, *dealt.harmless)]
    assert torch.equal(both[order], torch.cat([moved.harmful, moved.harmless]))
    assert 8 <= sum(row >= 32 for row in order[:32]) <= 24
    if is_paired:
        assert all(abs(a - b) == 32 for a, b in zip(order[:32], order[32:], strict=True))


def test_the_program_optimises_keeps_and_controls_what_it_found(
    refuser: Path, store: Store, case: Bench
) -> None:
    chosen = ("steps=1", "prompts=2", "target_tokens=3", "shuffled_null=true")
    settings = tiny_settings(refuser, "rdo", *(f"distill.rdo.{each}" for each in chosen))
    empty = ContrastSet("none", (), (), is_paired=True)
    select = replace(case.scorer.select)
    laboratory = Laboratory(case.model, Splits(case.fit, select, empty), settings, store)
    found, was_cached = laboratory.distilled(case.activations, case.scorer.tokens)
    again, is_cached = laboratory.distilled(case.activations, case.scorer.tokens)
    assert (was_cached, is_cached) == (False, True)
    assert found.method == again.method == "rdo"
    assert again.extractor == "difference_of_means"
    torch.testing.assert_close(again.basis[0], found.basis[0])
    assert again.provenance["rdo"]["null"]["dimension"] == 1
    control = permuted_directions(case.activations, again, 0)
    torch.testing.assert_close(
        control.basis[0], permuted_directions(case.activations, case.start, 0).basis[0]
    )


def test_a_start_of_several_directions_is_refused(case: Bench) -> None:
    basis = {layer: torch.eye(2, 32, dtype=torch.float64) for layer in case.start.basis}
    with pytest.raises(DirectionError, match="these have rank 2, differ by layer or have filters"):
        case.objective(SETTINGS, start=replace(case.start, basis=basis))


def test_a_model_that_refuses_nothing_is_refused(case: Bench) -> None:
    swapped = replace(case.fit, harmful=case.fit.harmless, harmless=case.fit.harmful)
    with pytest.raises(DirectionError, match=r"refuses 0 of 32 .* answers 0 of 32"):
        case.objective(SETTINGS, fit=swapped)


def test_optimising_without_refusal_tokens_is_refused(case: Bench) -> None:
    blind = Scorer(case.model, case.scorer.select, None, prompts=4)
    with pytest.raises(DirectionError, match="no refusal tokens are known"):
        case.objective(SETTINGS, scorer=blind)


@pytest.mark.parametrize("assignment", ["max_rank=2", "max_strength=1.2", "selection=per_layer"])
def test_settings_that_give_no_single_direction_are_refused(assignment: str) -> None:
    with pytest.raises(UsageError, match=r"distill: distill.rdo begins with one direction"):
        settings_for("rdo", [f"distill.{assignment}"])
