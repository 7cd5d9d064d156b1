"""Tuning lowers what it says it lowers, on prompts it has not seen, and leaves the model alone."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from obliteratus.directions import objective as objective_module
from obliteratus.directions import tuned as tuned_module
from obliteratus.directions.directions import Directions
from obliteratus.directions.objective import Objective
from obliteratus.directions.permuted import shuffled
from obliteratus.directions.score import Scorer
from obliteratus.directions.tuned import descent
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, UsageError
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.pipeline.tuning import Tuning
from obliteratus.probe.gradients import final_states
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.settings import TuneSettings, settings_from
from obliteratus.store import Store
from obliteratus.testing.bench import bench

SETTINGS = TuneSettings(steps=20, prompts=8, check_every=5)


@dataclasses.dataclass(frozen=True)
class Case:
    search: Tuning
    start: Directions
    scorer: Scorer
    """Scores by the openings that a search lowers."""

    def changed(self, settings: TuneSettings, **more: Any) -> Tuning:
        distill = self.search.settings.distill.model_copy(
            update={"tune": settings, "max_kl": more.pop("max_kl", 5.0)}
        )
        run = self.search.settings.model_copy(
            update={"distill": distill, "seed": more.pop("seed", 0)}
        )
        return dataclasses.replace(self.search, settings=run, **more)

    def tuned(self, settings: TuneSettings = SETTINGS, **more: Any) -> Directions:
        return self.changed(settings, **more).tuned(self.start)


@pytest.fixture(scope="module")
def case(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    found = bench(refuser, Store(tmp_path_factory.mktemp("store")))
    search = Tuning(found.model, found.splits, found.settings, found.activations, found.scorer)
    scorer = Scorer(found.model, found.splits.select, search.openings, prompts=32)
    return Case(search, found.start, scorer)


def effect(case: Case, directions: Directions) -> tuple[float, float]:
    found = case.scorer.effect(directions.basis, strengths=directions.strengths)
    return float(np.logaddexp(0, found.log_odds).mean()), float(found.kl.mean())


def test_refusal_and_divergence_both_fall_on_select_prompts(case: Case) -> None:
    before, after = effect(case, case.start), effect(case, case.tuned())
    assert after[0] < before[0] / 2
    assert after[1] < before[1] / 2


def test_the_weights_are_left_alone_and_hold_no_gradients(case: Case) -> None:
    before = {name: each.clone() for name, each in case.search.model.module.named_parameters()}
    case.tuned(TuneSettings(steps=2, prompts=4))
    for name, parameter in case.search.model.module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in case.search.model.module.modules())


def test_the_same_seed_gives_the_same_edit(case: Case) -> None:
    settings = TuneSettings(steps=10, prompts=4)
    one, same, other = (case.tuned(settings, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.basis[0], same.basis[0])
    assert not torch.equal(one.basis[0], other.basis[0])


def test_the_start_is_kept_where_no_step_is_better(case: Case) -> None:
    """With steps far too large nothing that is checked can be better."""
    wild = SETTINGS.model_copy(
        update={"strength_rate": 50.0, "direction_rate": 50.0, "check_every": 1, "patience": 1}
    )
    found = case.tuned(wild, max_kl=1000.0)  # nothing is kept out by the gate
    (kept,) = found.deviations
    assert "those of the selection" in kept.done
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
        case.tuned(SETTINGS.model_copy(update={"kl_weights": (weight,)}))
        for weight in (0.1, 1000.0)
    )
    assert effect(case, heavy)[1] < effect(case, light)[1]


def test_the_plan_does_to_weights_what_tuning_saw_under_hooks(case: Case) -> None:
    found = case.tuned()
    asked = {
        edit.site.name: edit
        for edit in removal(case.search.model, found.basis, strengths=found.strengths)
    }
    planned = plan(case.search.model, found)
    assert len(planned) == len(asked)
    for edit in planned:
        torch.testing.assert_close(edit.strengths, asked[edit.site.name].strengths)
        torch.testing.assert_close(edit.read_basis, asked[edit.site.name].read_basis)
    with edited(case.search.model, planned):
        pass


def test_a_model_that_refuses_nothing_has_nothing_to_tune(case: Case) -> None:
    """With harmless prompts in the place of harmful ones no prompt is refused."""
    search, fit = case.search, case.search.splits.fit
    sides = search.activations.harmful, search.activations.harmless
    swapped = dataclasses.replace(
        search,
        splits=dataclasses.replace(
            search.splits,
            fit=dataclasses.replace(fit, harmful=fit.harmless, harmless=fit.harmful),
        ),
        activations=dataclasses.replace(search.activations, harmful=sides[1], harmless=sides[0]),
    )
    vars(swapped)["openings"] = search.openings
    with pytest.raises(DirectionError, match=r"refuses none of 32 harmful fit prompts"):
        swapped.tuned(case.start)


def test_directions_that_differ_by_layer_are_refused(case: Case) -> None:
    basis = {layer: rows.clone() for layer, rows in case.start.basis.items()}
    basis[1] = -basis[1]
    other = dataclasses.replace(case, start=dataclasses.replace(case.start, basis=basis))
    with pytest.raises(DirectionError, match="one orthogonal basis for all layers"):
        other.tuned()


def objective(case: Case, fit: ContrastSet | None = None, **more: Any) -> Objective:
    fit = fit or case.search.splits.fit
    return Objective(case.search.model, fit, case.search.openings, **{"response_tokens": 4, **more})


def test_the_loss_of_no_edit_is_the_refusal_of_the_original_and_no_divergence(case: Case) -> None:
    losses = objective(case).losses([0, 1], [0, 5, 9])
    assert losses.kl.tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert losses.first_kl.tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert losses.refusal.min() > 0.69  # softplus of log-odds above 0


def test_losses_of_a_batch_are_those_of_each_prompt_in_the_order_asked(case: Case) -> None:
    each, edits = objective(case), removal(case.search.model, case.start.basis, strength=0.5)
    with edited(case.search.model, edits):
        every = each.measured()
        some = each.losses([3, 1], [7, 2, 11])
    torch.testing.assert_close(some.log_odds, every.log_odds[[3, 1]], atol=1e-4, rtol=0)
    torch.testing.assert_close(some.kl, every.kl[[7, 2, 11]], atol=1e-4, rtol=0)
    assert float(every.kl.min()) > 0
    assert not torch.equal(every.kl, every.first_kl)


def test_requests_shorter_than_the_answers_are_measured_as_longer_ones_are(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different counts cannot be run together there; each still has its own losses."""
    fit, runs = case.search.splits.fit, list[int]()

    def recorded(*arguments: Any, last: int, **more: Any) -> torch.Tensor:
        runs.append(last)
        return final_states(*arguments, last=last, **more)

    monkeypatch.setattr(objective_module, "final_states", recorded)
    short = dataclasses.replace(fit, harmful=(Prompt("a", "Hm"), Prompt("b", "No"), *fit.harmful))
    each = objective(case, fit=short, response_tokens=64)
    with edited(case.search.model, removal(case.search.model, case.start.basis, strength=0.5)):
        runs.clear()
        both = each.losses([0, 3, 1], [7, 2, 11])
        assert len(runs) > 1
        odds = torch.cat([each.losses([row], []).log_odds for row in (0, 3, 1)])
        alone = [each.losses([], [row]) for row in (7, 2, 11)]
    torch.testing.assert_close(both.log_odds, odds, atol=1e-4, rtol=0)
    torch.testing.assert_close(both.kl, torch.cat([e.kl for e in alone]), atol=1e-4, rtol=0)
    assert float(both.kl.min()) > 0
    assert len(set(both.log_odds.tolist())) == 3


def test_without_answers_the_divergence_is_that_of_the_first_token(case: Case) -> None:
    with edited(case.search.model, removal(case.search.model, case.start.basis)):
        found = objective(case, response_tokens=0).measured()
    assert torch.equal(found.kl, found.first_kl)


def test_the_scorer_measures_the_same_on_select_prompts(case: Case) -> None:
    """Bypass and KL in the record of a search can be compared with those of every method."""
    found = case.tuned()
    last = found.provenance["tuning"]["front"][-1]
    after = case.scorer.effect(found.basis, strengths=found.strengths)
    assert last["log_odds"] == pytest.approx(after.log_odds.mean(), abs=1e-3)
    assert last["kl"] == pytest.approx(after.kl.mean(), abs=1e-4)


def test_only_the_categories_asked_for_are_answered_and_the_others_kept(case: Case) -> None:
    fit = categorised(case.search.splits.fit)
    found = Objective(
        case.search.model, fit, case.search.openings, response_tokens=2, categories=("even",)
    )
    assert {prompt.category for prompt in found.refused} == {"even"}
    assert [p for p in found.kept if p.category == "odd"] == [*fit.harmful[1::2]]
    with pytest.raises(DirectionError, match=r"none of 32 harmful prompts is of none-such"):
        Objective(
            case.search.model,
            fit,
            case.search.openings,
            response_tokens=2,
            categories=("none-such",),
        )


def test_the_search_lowers_every_opening_that_harmful_prompts_make_likelier(case: Case) -> None:
    """More than what measures refusal, or the search would move refusals to another opening."""
    search = case.search
    odds = [search.openings.harmful, search.openings.harmless]
    assert set(search.scorer.tokens.ids) <= set(search.openings.ids)
    assert odds[0] is not None
    assert odds[1] is not None
    assert odds[0] > odds[1]


def test_the_kept_prompts_can_be_bounded_and_are_spread(case: Case) -> None:
    some, every = objective(case, most_kept=4), objective(case)
    assert some.kept == every.kept[:: len(every.kept) // 4]


def test_a_path_gives_up_divergence_for_refusal_as_far_as_is_allowed(case: Case) -> None:
    weights = SETTINGS.model_copy(update={"kl_weights": (1000.0, 1.0)})
    path = case.tuned(weights)
    mild, strong = path.provenance["tuning"]["front"]
    assert strong["refusal"] < mild["refusal"]
    assert strong["kl"] > mild["kl"]
    assert effect(case, path)[0] == pytest.approx(strong["refusal"], abs=1e-3)
    between = (mild["kl"] + strong["kl"]) / 2
    found = case.tuned(weights, max_kl=between)
    assert effect(case, found)[1] <= between


@pytest.mark.parametrize("share", [0.25, 2.0])
def test_the_best_is_made_of_a_budget_of_divergence(case: Case, share: float) -> None:
    """Strengths fall to what is allowed, and grow only where refusal falls."""
    free = case.tuned().provenance["tuning"]["checks"][-1]
    budget = share * free["kl"]
    found = case.tuned(SETTINGS.model_copy(update={"kl_budget": budget}))
    last = found.provenance["tuning"]["checks"][-1]
    if share < 1:
        assert 0.9 * budget <= last["kl"] <= budget
    else:
        assert last["kl"] <= budget
        rounding = 1e-6  # in other batches
        assert last["refusal"] <= free["refusal"] * (1 + rounding)


def test_an_edit_beyond_the_budget_is_not_used(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here no trial of another strength is made."""
    monkeypatch.setattr(tuned_module, "SCALINGS", 0)
    found = case.tuned(SETTINGS.model_copy(update={"kl_budget": 1e-6}))
    assert found.provenance["tuning"]["best_step"] == 0
    with pytest.raises(UsageError, match=r"kl_budget=0.2 is beyond distill.max_kl=0.1"):
        settings_from({"distill": {"tune": {"kl_budget": 0.2}}})


def test_what_is_checked_is_the_mean_since_the_check_before(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, settings = case.search, SETTINGS.model_copy(update={"check_every": 2, "steps": 4})
    each = TunableRemoval(search.model, case.start.basis[0], (0, 1), strength=1.0)
    walked = [0.2, 0.4, 1.0, 2.0]

    def walk(*_: object, **__: object) -> Iterator[int]:
        for step, strength in enumerate(walked, start=1):
            torch.nn.init.constant_(each.strengths, strength)
            yield step

    monkeypatch.setattr(tuned_module, "_descend", walk)
    some = objective(case)
    found = list(descent(each, some, some, settings, 1.0, seed=0))
    means = [float(check.parameters["strengths"].mean()) for check in found]
    assert means == pytest.approx([0.3, 1.5])
    assert each.strengths.unique().tolist() == [2.0]  # the walk goes on where it was


def test_weights_that_grow_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the largest \(mildest edit\) first"):
        settings_from({"distill": {"tune": {"kl_weights": [1, 2]}}})
    assert TuneSettings.model_validate({"kl_weights": 3}).kl_weights == (3.0,)


def test_sparsity_makes_the_edit_smaller(case: Case) -> None:
    sizes: list[float] = []
    for sparsity in (0.0, 1.0):
        found = case.tuned(SETTINGS.model_copy(update={"sparsity": sparsity}))
        assert found.strengths is not None
        sizes.append(
            sum(float(v.abs().sum()) for parts in found.strengths.values() for v in parts.values())
        )
    assert sizes[1] < 0.9 * sizes[0]


def test_a_layer_whose_strengths_are_pulled_to_nothing_is_left_alone(case: Case) -> None:
    """All of a layer's strengths fall by one length, so a short layer is 0 and no other is."""
    model, rows = case.search.model, case.start.basis[0]
    each = TunableRemoval(model, rows, ("embedding", 0, 1), strength=1.0)
    with torch.no_grad():
        for values in each.site_strengths()[1].values():
            values.fill_(0.05)
    before = [v.item() for v in each.site_strengths()[0].values()]
    each.shrink(0.1)
    assert not any(values.any() for values in each.site_strengths()[1].values())
    after = [v.item() for v in each.site_strengths()[0].values()]
    assert np.linalg.norm(before) - np.linalg.norm(after) == pytest.approx(0.1)
    active = [edit for edit in each.edits() if edit.strengths.any()]
    assert {edit.site.layer for edit in active} == {None, 0}


def test_more_directions_can_be_tuned(case: Case) -> None:
    found = case.tuned(SETTINGS.model_copy(update={"rank": 2}))
    rows = found.basis[0]
    torch.testing.assert_close(rows @ rows.T, torch.eye(2, dtype=torch.float64))
    assert found.strengths is not None
    assert all(len(v) == 2 for parts in found.strengths.values() for v in parts.values())
    assert effect(case, found)[0] < effect(case, case.start)[0]


def test_the_null_with_shuffled_labels_does_not_end_refusal(case: Case) -> None:
    found = case.tuned(SETTINGS.model_copy(update={"shuffled_null": True})).provenance["tuning"]
    assert found["null"]["step"] == found["best_step"]
    assert found["null"]["refusal"] > 10 * found["front"][-1]["refusal"]


def test_shuffling_turns_half_of_the_pairs_and_deals_the_rest_anew() -> None:
    paired = shuffled(6, 6, is_paired=True, seed=3)
    assert sorted(paired.tolist()) == list(range(12))
    assert int((paired[:6] >= 6).sum()) == 3
    assert torch.equal((paired[:6] - paired[6:]).abs(), torch.full((6,), 6))
    alone = shuffled(5, 3, is_paired=False, seed=3)
    assert sorted(alone.tolist()) == list(range(8))


def test_recomputing_blocks_changes_no_gradient(case: Case) -> None:
    settings = TuneSettings(steps=10, prompts=4)
    plain, again = (
        case.tuned(settings.model_copy(update={"recompute": flag})) for flag in (False, True)
    )
    torch.testing.assert_close(plain.basis[0], again.basis[0], atol=1e-5, rtol=0)


def categorised(prompts: ContrastSet) -> ContrastSet:
    harmful = tuple(
        dataclasses.replace(each, category=("even", "odd")[index % 2])
        for index, each in enumerate(prompts.harmful)
    )
    harmless = tuple(dataclasses.replace(each, category="plain") for each in prompts.harmless)
    return dataclasses.replace(prompts, harmful=harmful, harmless=harmless)
