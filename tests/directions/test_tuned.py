"""Tuning lowers what it says it lowers, on prompts it has not seen, and leaves the model alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.directions.objective import Objective
from obliteratus.directions.score import Scorer
from obliteratus.directions.tuned import tuned
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import TuneSettings
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings

SETTINGS = TuneSettings(steps=20, prompts=8, check_every=5)


@dataclasses.dataclass(frozen=True)
class Case:
    model: LoadedModel
    fit: ContrastSet
    scorer: Scorer
    start: Directions

    def objective(self, fit: ContrastSet | None = None) -> Objective:
        return Objective(self.model, fit or self.fit, self.scorer.tokens, response_tokens=4)

    def tuned(self, settings: TuneSettings = SETTINGS, **more: object) -> Directions:
        objective = more.pop("objective", None) or self.objective()
        more = {"max_kl": 5.0, **more}
        return tuned(self.start, self.scorer, objective, settings, **more)  # pyright: ignore


@pytest.fixture(scope="module")
def case(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    settings = tiny_settings(refuser, "basic")
    store = Store(tmp_path_factory.mktemp("store"))
    model = summon(str(refuser), settings.model, store=store)
    splits = split(contrast_set(settings.prompts))
    laboratory = Laboratory(model, splits, settings, store)
    activations, _ = laboratory.probed()
    tokens = laboratory.refusal_tokens(activations)
    start, _ = laboratory.distilled(activations, tokens)
    return Case(model, splits.fit, laboratory.scorer(tokens), start)


def effect(case: Case, directions: Directions) -> tuple[float, float]:
    found = case.scorer.effect(directions.basis, strengths=directions.strengths)
    return float(np.logaddexp(0, found.log_odds).mean()), float(found.kl.mean())


def test_refusal_and_divergence_both_fall_on_select_prompts(case: Case) -> None:
    before, after = effect(case, case.start), effect(case, case.tuned())
    assert after[0] < before[0] / 2
    assert after[1] < before[1] / 2


def test_the_weights_are_left_alone_and_hold_no_gradients(case: Case) -> None:
    before = {name: each.clone() for name, each in case.model.module.named_parameters()}
    case.tuned(TuneSettings(steps=2, prompts=4))
    for name, parameter in case.model.module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in case.model.module.modules())


def test_the_same_seed_gives_the_same_edit(case: Case) -> None:
    settings = TuneSettings(steps=3, prompts=4, check_every=3)
    one, same, other = (case.tuned(settings, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.basis[0], same.basis[0])
    assert not torch.equal(one.basis[0], other.basis[0])


def test_the_start_is_kept_where_no_step_is_better(case: Case) -> None:
    """With steps far too large nothing that is checked can be better."""
    wild = SETTINGS.model_copy(
        update={"strength_rate": 50.0, "direction_rate": 50.0, "check_every": 1, "patience": 1}
    )
    found = case.tuned(wild)
    assert found.provenance["tuning"]["best_step"] == 0
    torch.testing.assert_close(found.basis[0], case.start.basis[0])
    assert effect(case, found) == pytest.approx(effect(case, case.start))


def test_an_edit_beyond_the_divergence_allowed_is_not_used(case: Case) -> None:
    found = case.tuned(max_kl=1e-6)
    assert found.provenance["tuning"]["best_step"] == 0


def test_patience_ends_what_does_not_improve(case: Case) -> None:
    still = {"strength_rate": 0.0, "direction_rate": 0.0, "check_every": 1, "patience": 2}
    found = case.tuned(SETTINGS.model_copy(update=still))
    assert [check["step"] for check in found.provenance["tuning"]["checks"]] == [0, 1, 2, 3]


def test_rates_of_zero_keep_what_they_concern(case: Case) -> None:
    settings = SETTINGS.model_copy(update={"direction_rate": 0.0})
    found = case.tuned(settings)
    torch.testing.assert_close(found.basis[0], case.start.basis[0])
    assert found.provenance["tuning"]["best_step"] > 0


def test_more_weight_on_divergence_gives_less_of_it(case: Case) -> None:
    light, heavy = (
        case.tuned(SETTINGS.model_copy(update={"kl_weight": weight})) for weight in (0.1, 1000.0)
    )
    assert effect(case, heavy)[1] < effect(case, light)[1]


def test_the_plan_does_to_weights_what_tuning_saw_under_hooks(case: Case) -> None:
    found = case.tuned()
    asked = {
        edit.site.name: edit for edit in removal(case.model, found.basis, strengths=found.strengths)
    }
    planned = plan(case.model, found)
    assert len(planned) == len(asked)
    for edit in planned:
        torch.testing.assert_close(edit.strengths, asked[edit.site.name].strengths)
        torch.testing.assert_close(edit.read_basis, asked[edit.site.name].read_basis)
    with edited(case.model, planned):
        pass


def test_shuffled_labels_give_nothing_to_tune(case: Case) -> None:
    """With harmless prompts in the place of harmful ones no prompt is refused."""
    swapped = dataclasses.replace(case.fit, harmful=case.fit.harmless, harmless=case.fit.harmful)
    with pytest.raises(DirectionError, match=r"refuses none of 32 harmful fit prompts"):
        case.objective(swapped)


def test_directions_that_differ_by_layer_are_refused(case: Case) -> None:
    basis = {layer: rows.clone() for layer, rows in case.start.basis.items()}
    basis[1] = -basis[1]
    other = dataclasses.replace(case, start=dataclasses.replace(case.start, basis=basis))
    with pytest.raises(DirectionError, match="one orthogonal basis for all layers"):
        other.tuned()


def test_the_loss_of_no_edit_is_the_refusal_of_the_original_and_no_divergence(case: Case) -> None:
    objective = case.objective()
    objective.prepare([0, 5, 9])
    loss = objective.loss([0, 1], [0, 5, 9])
    assert float(loss.kl) == pytest.approx(0, abs=1e-5)
    assert float(loss.refusal) > 0.69  # softplus of log-odds above 0
