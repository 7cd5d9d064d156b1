"""A later pass removes what controls refusal, and leaves what merely separates the classes."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.directions.samples import samples_at
from obliteratus.directions.score import Effect, Scorer
from obliteratus.directions.separation import separation_test
from obliteratus.edits.controls import matched_random
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import change_energy, plan
from obliteratus.errors import DirectionError, EditError, UsageError
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.hooks import edited
from obliteratus.pipeline import refinement
from obliteratus.pipeline import run as stages_of_a_run
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.pipeline.refinement import (
    NULLS,
    NextPass,
    check_extractor,
    equivalent,
    judge,
    later_settings,
    next_pass,
    row_of,
)
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import EditSettings
from obliteratus.store import Store
from obliteratus.testing.keystone import exact_logits, random_directions, tokens_for
from obliteratus.testing.refuser import tiny_settings
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify.left import pass_line
from obliteratus.verify.records.edit import PassTried, RowTried


@dataclasses.dataclass(frozen=True)
class Case:
    """The tiny refuser without its direction, and what the first pass knew."""

    laboratory: Laboratory
    tokens: RefusalTokens
    first: Directions
    reference: torch.Tensor

    def after(self, model: LoadedModel) -> Laboratory:
        old = self.laboratory
        return Laboratory(model, old.splits, old.settings, old.store)

    def next(self, model: LoadedModel) -> NextPass:
        return next_pass(self.after(model), self.tokens, [self.first], self.reference)

    def third(self, previous: np.ndarray) -> NextPass:
        """Try a third pass on the model, whose log-odds were ``previous`` before the second."""
        earlier = [self.first, self.first]
        return next_pass(self.laboratory, self.tokens, earlier, self.reference, previous)


@pytest.fixture(scope="module")
def case(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    settings = tiny_settings(
        refuser,
        "advanced",
        "edit.passes=2",
        "distill.max_rank=1",
        "distill.select_prompts=16",
    )
    store = Store(tmp_path_factory.mktemp("store"))
    model = summon(str(refuser), settings.model, store=store)
    laboratory = Laboratory(model, split(contrast_set(settings.prompts)), settings, store)
    activations, _ = laboratory.probed()
    tokens = laboratory.refusal_tokens(activations)
    first, _ = laboratory.distilled(activations, tokens)
    reference = laboratory.scorer(tokens).log_probabilities
    excise(model, plan(model, first, settings.edit))
    return Case(Laboratory(model, laboratory.splits, settings, store), tokens, first, reference)


def separating(case: Case) -> torch.Tensor:
    """Return what still separates the classes at the last block, outside what is removed."""
    model = case.laboratory.model
    activations, _ = case.after(model).probed()
    apart = activations.difference(model.anatomy.n_layers - 1)[-1]
    for rows in case.first.basis.values():
        apart = apart - (rows @ apart) @ rows
    return apart / apart.norm()


def judged_along(case: Case, model: LoadedModel, row: torch.Tensor) -> RowTried:
    """Judge the removal of ``row`` from every writer of ``model``."""
    along = dataclasses.replace(case.first, basis=dict.fromkeys(case.first.basis, row[None]))
    planned = plan(model, along, case.laboratory.settings.edit)
    scorer = case.after(model).scorer(case.tokens, reference=case.reference)
    (tried,) = judge(model, scorer, planned, max_kl=5.0, seed=0)
    return tried


def copied(model: LoadedModel) -> LoadedModel:
    return dataclasses.replace(model, module=copy.deepcopy(model.module))


def unread(model: LoadedModel, row: torch.Tensor) -> LoadedModel:
    """Return ``model`` with every reader of the stream blind to ``row``: W G (I − rrᵀ) G⁻¹."""
    model = copied(model)
    get = model.module.get_parameter
    norms = {"lm_head.weight": "model.norm.weight"}
    for number in range(model.anatomy.n_layers):
        start = f"model.layers.{number}"
        for part in ("q", "k", "v"):
            norms[f"{start}.self_attn.{part}_proj.weight"] = f"{start}.input_layernorm.weight"
        for part in ("gate", "up"):
            norms[f"{start}.mlp.{part}_proj.weight"] = f"{start}.post_attention_layernorm.weight"
    with torch.no_grad():
        for name, norm in norms.items():
            weight, gain = get(name), get(norm).double()
            seen = (weight.double() * gain) @ row
            weight -= (seen[:, None] * (row / gain)).to(weight.dtype)
    return model


def with_reader(
    case: Case, model: LoadedModel, row: torch.Tensor, strength: float = 3.0
) -> LoadedModel:
    """Return ``model`` with a head whose refusal tokens read ``row``."""
    model = copied(model)
    gain = model.module.get_parameter("model.norm.weight").double()
    head = model.module.get_parameter("lm_head.weight")
    with torch.no_grad():
        head[list(case.tokens.ids)] += (strength * row / gain).to(head.dtype)
    return model


def test_a_planted_second_direction_is_kept(case: Case) -> None:
    found = case.next(with_reader(case, case.laboratory.model, separating(case)))
    assert found.tried.kept == 1
    (row,) = found.tried.rows
    assert row.is_kept
    assert row.nulls == NULLS
    assert row.null is not None
    assert row.margin is not None
    assert row.gain.interval[1] < row.null.interval[0]
    assert row.margin.interval[1] < 0
    assert found.plan is not None
    assert found.directions is not None
    assert found.directions.provenance["refinement"]["rows"][0]["is_kept"]
    assert "removes 1 of 1 directions tried" in pass_line(found.tried)


def test_what_still_separates_but_does_not_control_is_not_kept(case: Case) -> None:
    """What is asked for stays decodable; a head that reads it makes the difference."""
    row = separating(case)
    model = unread(case.laboratory.model, row)
    activations, _ = case.after(model).probed()
    last = samples_at(activations, model.anatomy.n_layers - 1, -1)
    test = separation_test(last, shuffles=199, seed=0)
    assert test.effect.interval[0] > 0
    assert test.p_value == 1 / 200
    assert abs(float(last.delta @ row)) > 0.5 * float(last.delta.norm())
    assert not judged_along(case, model, row).is_kept
    # what both classes write along it has a sign of its own, which decides what reading it does
    strength = 3.0 if float(last.harmful.double().mean(0) @ row) > 0 else -3.0
    assert judged_along(case, with_reader(case, model, row, strength), row).is_kept


def test_a_pass_on_a_model_that_shows_no_control_is_not_made(case: Case) -> None:
    found = case.next(case.laboratory.model)
    assert found.tried.kept == 0
    assert found.plan is None
    assert found.directions is None
    assert "was not made" in pass_line(found.tried)


def effect(log_odds: float, kl: float = 0.01, seed: int = 0) -> Effect:
    noise = np.random.default_rng(seed).normal(size=16) * 0.05
    base = np.random.default_rng(99).normal(size=16)
    return Effect(base + log_odds + noise, np.full(16, kl))


class Scripted(Scorer):
    """A scorer whose effects are given: first the direction's, then its nulls'."""

    def __init__(self, *effects: Effect) -> None:
        self.original = effect(2.0)
        self._effects = list(effects)

    def effect_of(self, edits: object) -> Effect:
        del edits
        return self._effects.pop(0)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    monkeypatch.setattr(refinement, "matched_random", lambda plan, model, seed: plan)

    def run(*effects: Effect):
        return judge(model, Scripted(*effects), planned, max_kl=0.1, seed=0)

    return run


def test_one_random_direction_that_does_as_much_is_enough_to_refuse(judged) -> None:
    nulls = [effect(1.9, seed=k) for k in range(1, NULLS + 1)]
    (row,) = judged(effect(0.0), *nulls)
    assert row.is_kept
    nulls[10] = effect(0.0, seed=50)
    (row,) = judged(effect(0.0), *nulls)
    assert not row.is_kept
    assert row.nulls == 11
    assert "random direction 11 of the same energy lowers it as far" in row.reason


def test_the_interval_is_corrected_for_the_number_of_nulls(judged) -> None:
    """A margin that a single 95 % interval shows is not enough against nineteen."""
    apart = np.random.default_rng(5).normal(size=16)
    apart = (apart - apart.mean()) / apart.std(ddof=1)
    after = effect(0.0)
    close = Effect(after.log_odds + 0.1 + apart * 0.1 * 4 / 2.5, after.kl)  # t = 2.5
    (row,) = judged(after, close)
    assert not row.is_kept
    assert row.margin is not None
    assert row.margin.value == pytest.approx(-0.1)
    assert refinement.paired_bootstrap(close.log_odds, after.log_odds, seed=0).interval[1] < 0


def test_no_gain_and_too_much_divergence_end_the_trial_before_any_null(judged) -> None:
    (row,) = judged(effect(2.0))
    assert (row.is_kept, row.nulls) == (False, 0)
    assert "beyond noise" in row.reason
    (row,) = judged(effect(0.0, kl=0.2))
    assert (row.is_kept, row.nulls) == (False, 0)
    assert "over distill.max_kl=0.1" in row.reason


def test_a_direction_without_a_null_is_not_kept(judged, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> EditPlan:
        raise EditError("no random direction moves the energy 3.")

    monkeypatch.setattr(refinement, "matched_random", none)
    (row,) = judged(effect(0.0))
    assert not row.is_kept
    assert "no null to hold it against: no random direction moves" in row.reason


def test_directions_after_the_first_that_is_not_kept_are_not_tried() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model, rank=3))
    rows = judge(model, Scripted(effect(2.0)), planned, max_kl=0.1, seed=0)
    assert len(rows) == 1


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2", "gpt2"])
def test_the_rows_of_a_plan_one_after_the_other_are_the_plan(model_type: str) -> None:
    model = tiny_model(model_type)
    planned = plan(model, random_directions(model, rank=2), EditSettings(strength=0.7))
    tokens = tokens_for(model)
    with edited(model, planned):
        whole = exact_logits(model, tokens)
    with edited(model, row_of(planned, 0)), edited(model, row_of(planned, 1)):
        parts = exact_logits(model, tokens)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)


def test_the_nulls_take_the_energy_of_the_one_direction_that_is_tried() -> None:
    model = tiny_model("llama")
    alone = row_of(plan(model, random_directions(model, rank=2)), 1)

    def energy(planned: EditPlan) -> float:
        return sum(
            change_energy(edit, model.module.get_parameter(edit.site.name)) for edit in planned
        )

    assert energy(matched_random(alone, model, 3)) == pytest.approx(energy(alone), rel=1e-5)


def test_divergence_is_measured_from_the_model_before_any_edit(case: Case) -> None:
    laboratory = case.laboratory
    own = laboratory.scorer(case.tokens)
    far = laboratory.scorer(case.tokens, reference=case.reference)
    assert float(own.original.kl.max()) == pytest.approx(0, abs=1e-6)
    assert float(far.original.kl.mean()) > 1e-3
    np.testing.assert_array_equal(own.original.log_odds, far.original.log_odds)


def test_a_pass_in_which_nothing_is_found_says_so(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise DirectionError("none of 3 candidate directions passes the selection.")

    monkeypatch.setattr(Laboratory, "distilled", none)
    found = case.next(case.laboratory.model)
    assert found.plan is None
    assert pass_line(found.tried) == (
        "Pass 2 was not made: nothing was found: none of 3 candidate directions passes the "
        "selection."
    )


def test_what_is_removed_already_is_not_tried_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Laboratory, "distilled", lambda *_: (case.first, False))
    assert "is removed already" in case.next(case.laboratory.model).tried.reason


def test_an_oblique_edit_in_several_passes_is_refused(refuser: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        check_extractor(
            tiny_settings(refuser, "advanced", "distill.extractor=leace", "edit.passes=2")
        )


def test_the_scorer_sees_edits_as_it_sees_bases(case: Case) -> None:
    scorer: Scorer = case.laboratory.scorer(case.tokens)
    model = case.laboratory.model
    rows = random_directions(model)
    planned = plan(model, rows, case.laboratory.settings.edit)
    np.testing.assert_allclose(
        scorer.effect_of(planned).log_odds, scorer.effect(rows.basis).log_odds, atol=1e-4
    )


def test_after_a_pass_that_changed_nothing_none_follows(case: Case) -> None:
    now = case.laboratory.scorer(case.tokens).original.log_odds
    noise = np.random.default_rng(3).normal(0, 0.05, len(now))
    found = case.third(now + noise)
    assert found.plan is None
    line = pass_line(found.tried)
    assert line.startswith("Pass 3 was not made: pass 2 left the refusal log-odds where they were:")
    assert line.endswith("lies within ±0.25.")
    np.testing.assert_array_equal(found.log_odds, now)


def test_after_a_pass_that_lowered_refusal_the_next_is_tried(case: Case) -> None:
    now = case.laboratory.scorer(case.tokens).original.log_odds
    assert "left the refusal log-odds" not in case.third(now + 1.0).tried.reason


def test_a_model_that_made_up_for_all_of_the_first_pass_gets_a_second(case: Case) -> None:
    """Before the second pass there is nothing to compare: equal log-odds may be full repair."""
    found = case.next(case.laboratory.model)
    assert "left the refusal log-odds" not in found.tried.reason


@pytest.mark.parametrize(
    ("change", "spread", "stops"), [(0.0, 0.1, True), (0.2, 0.3, False), (0.0, 2.0, False)]
)
def test_equivalence_is_shown_and_not_assumed(change: float, spread: float, stops: bool) -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(3, 2, 16)
    drawn = rng.normal(size=16)
    after = before + change + spread * (drawn - drawn.mean()) / drawn.std()
    assert (equivalent(before, after, 2) is not None) == stops


def test_each_pass_knows_what_the_one_before_it_left(
    refuser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[float] | None]] = []
    used: set[tuple[int, float | None]] = set()

    def scripted(laboratory, tokens, earlier, reference, previous=None) -> NextPass:
        del tokens, reference
        number = len(earlier)
        seen.append((number, None if previous is None else previous.tolist()))
        edit = laboratory.settings.edit
        used.add((laboratory.settings.distill.max_rank, edit.strength))
        tried = PassTried(number=number + 1, rows=(), reason="it is scripted.")
        odds = np.array([float(number)])
        if number == 3:
            return NextPass(tried, odds)
        return NextPass(tried, odds, earlier[0], plan(laboratory.model, earlier[0], edit))

    monkeypatch.setattr(stages_of_a_run, "next_pass", scripted)
    asked = ("edit.passes=4", "edit.pass_rank=2", "edit.pass_strength=1", "verify.prompts=4")
    settings = tiny_settings(refuser, "advanced", "distill.max_rank=1", *asked)
    obliterate(str(refuser), tmp_path / "out", settings, store=Store(tmp_path / "store"))
    assert seen == [(1, None), (2, [1.0]), (3, [2.0])]
    assert used == {(2, 1.0)}


def test_later_passes_may_have_a_rank_and_a_strength_of_their_own() -> None:
    settings = settings_for("advanced", ["edit.pass_rank=2", "edit.pass_strength=1"])
    later = later_settings(settings)
    assert (later.distill.max_rank, later.edit.strength) == (2, 1.0)
    plain = settings_for("advanced")
    assert later_settings(plain) == plain


def test_a_rank_of_later_passes_that_their_search_refuses_is_refused_first() -> None:
    with pytest.raises(UsageError, match=r"distill\.max_rank=1"):
        check_extractor(settings_for("rdo", ["edit.pass_rank=2"]))
