"""The search by trials does what its record says, survives a kill, and keeps no answer."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.directions.permuted import permuted_directions
from obliteratus.edits.planner import plan
from obliteratus.errors import DirectionError, UsageError
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.removal import removal
from obliteratus.pipeline import kernel_search
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.pipeline.stages import Laboratory
from obliteratus.pipeline.trials import JOURNAL, Outcome, Trial
from obliteratus.probe.activations import Activations
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.release.directions_file import load_directions, save_directions
from obliteratus.settings import settings_from
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings

TRIALS = 6
QUICK = (
    "distill.kernel.startup_trials=4",
    "distill.kernel.prompts=6",
    "distill.kernel.tokens=28",
    "distill.select_prompts=6",
)


@dataclasses.dataclass(frozen=True)
class Case:
    folder: Path
    model: LoadedModel
    splits: Splits
    activations: Activations
    tokens: RefusalTokens

    def laboratory(self, root: Path, *assignments: str, trials: int = TRIALS) -> Laboratory:
        asked = (*QUICK, f"distill.kernel.trials={trials}", *assignments)
        settings = tiny_settings(self.folder, "kernel-search", *asked)
        return Laboratory(self.model, self.splits, settings, Store(root))

    def found(self, root: Path, *assignments: str, trials: int = TRIALS) -> Directions:
        laboratory = self.laboratory(root, *assignments, trials=trials)
        return laboratory.distilled(self.activations, self.tokens)[0]


@pytest.fixture(scope="module")
def case(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    settings = tiny_settings(refuser, "kernel-search", *QUICK)
    store = Store(tmp_path_factory.mktemp("probe"))
    model = summon(str(refuser), settings.model, store=store)
    splits = split(contrast_set(settings.prompts))
    laboratory = Laboratory(model, splits, settings, store)
    activations, _ = laboratory.probed()
    return Case(refuser, model, splits, activations, laboratory.refusal_tokens(activations))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def found(case: Case, root: Path) -> Directions:
    return case.found(root)


class Killed(BaseException):
    """What ends a process in the middle of a trial."""


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Count how often prompts are answered, and die at one of the times."""

    def count(die_at: int | None = None) -> list[int]:
        calls: list[int] = []
        shipped = kernel_search.generate

        def counting(*args: Any, **more: Any) -> Any:
            calls.append(1)
            if len(calls) == die_at:
                raise Killed
            return shipped(*args, **more)

        monkeypatch.setattr(kernel_search, "generate", counting)
        return calls

    return count


def facts(directions: Directions) -> dict[str, Any]:
    return directions.provenance["kernel"]


def assert_equal(one: Directions, other: Directions) -> None:
    assert facts(one) == facts(other)
    assert one.strengths == other.strengths
    assert one.basis.keys() == other.basis.keys()
    assert all(torch.equal(rows, other.basis[layer]) for layer, rows in one.basis.items())


def test_what_is_used_refuses_less_and_does_what_the_record_says(
    case: Case, root: Path, found: Directions
) -> None:
    chosen, original = facts(found)["chosen"], facts(found)["original"]
    assert original["refusal"] == 6
    assert chosen["refusals"] < original["refusal"]
    scorer = case.laboratory(root).scorer(case.tokens)
    effect = scorer.effect(found.basis, strengths=found.strengths)
    assert float(effect.kl.mean()) == pytest.approx(chosen["kl"], abs=1e-6)
    assert float(effect.log_odds.mean()) == pytest.approx(chosen["log_odds"], abs=1e-5)


def test_the_front_is_in_the_record_and_the_choice_is_its_end(found: Directions) -> None:
    front = facts(found)["front"]
    assert facts(found)["trials"] == TRIALS
    assert facts(found)["prompts"] == [6, 6]
    assert front[0] == facts(found)["chosen"]  # all trials are within the KL of 5 that is allowed
    assert [each["refusals"] for each in front] == sorted({each["refusals"] for each in front})
    assert [each["kl"] for each in front] == sorted((e["kl"] for e in front), reverse=True)


def test_strengths_follow_the_kernels_in_the_record(found: Directions) -> None:
    kernels = facts(found)["chosen"]["kernels"]
    assert set(kernels) == {"attention", "mlp"}
    assert found.strengths is not None
    assert any(bool(v) for parts in found.strengths.values() for v in parts.values())
    for layer, parts in found.strengths.items():
        for component, values in parts.items():
            kernel = kernel_search.Kernel(**kernels[component])
            assert values.tolist() == [kernel.weight(layer)]


def test_one_direction_near_the_layer_in_the_record_is_used_everywhere(
    case: Case, found: Directions
) -> None:
    rows = found.basis[0]
    assert list(found.basis) == [0, 1, 2]
    assert all(torch.equal(rows, other) for other in found.basis.values())
    index = facts(found)["chosen"]["layer"]
    assert found.source_layer == round(index)
    below, above = (case.activations.difference(layer)[0] for layer in (int(index), int(index) + 1))
    mixed = (1 - index % 1) * below / below.norm() + index % 1 * above / above.norm()
    torch.testing.assert_close(rows[0], mixed / mixed.norm())
    assert found.provenance["shares"].keys() == {str(found.source_layer)}


def test_the_plan_does_to_weights_what_trials_saw_under_hooks(
    case: Case, root: Path, found: Directions
) -> None:
    settings = case.laboratory(root).settings
    hooks = {
        edit.site.name: edit for edit in removal(case.model, found.basis, strengths=found.strengths)
    }
    planned = plan(case.model, found, settings.edit)
    assert len(planned) == len(hooks) == 6
    for edit in planned:
        torch.testing.assert_close(edit.strengths, hooks[edit.site.name].strengths)
        torch.testing.assert_close(edit.read_basis, hooks[edit.site.name].read_basis)


def test_a_killed_search_ends_as_if_it_had_not_been_killed(
    case: Case, tmp_path: Path, found: Directions, answered: Callable[..., list[int]]
) -> None:
    answered(die_at=5)  # the original and three trials are answered
    with pytest.raises(Killed):
        case.found(tmp_path)
    assert not any(module._forward_hooks for module in case.model.module.modules())
    calls = answered()
    assert_equal(case.found(tmp_path), found)
    assert len(calls) == 1 + TRIALS - 3


def test_more_trials_and_another_limit_use_the_finished_ones(
    case: Case, root: Path, found: Directions, answered: Callable[..., list[int]]
) -> None:
    calls = answered()
    case.found(root, "distill.max_kl=4")
    assert len(calls) == 1
    assert facts(case.found(root, trials=TRIALS + 2))["trials"] == TRIALS + 2
    assert len(calls) == 1 + 1 + 2


@pytest.mark.parametrize(
    "change", ["seed=1", "distill.kernel.tokens=27", "edit.post_norm=orthogonal"]
)
def test_what_determines_the_trials_begins_a_search_of_its_own(
    case: Case, root: Path, found: Directions, change: str
) -> None:
    laboratory, other = case.laboratory(root), case.laboratory(root, change)
    keys = [each._search_key(each.scorer(case.tokens)) for each in (laboratory, other)]
    assert keys[0] != keys[1]
    assert (root / keys[0] / JOURNAL).exists()


def test_neither_the_journal_nor_the_record_holds_an_answer(root: Path, found: Directions) -> None:
    kept = [path.read_text() for path in root.rglob(JOURNAL)]
    assert kept
    for text in (*kept, json.dumps(found.provenance)):
        assert "cannot" not in text
        assert "Sure" not in text


def test_directions_survive_the_disk(tmp_path: Path, found: Directions) -> None:
    save_directions(found, tmp_path / "d.safetensors")
    assert_equal(load_directions(tmp_path / "d.safetensors"), found)


def test_each_block_can_keep_its_own_direction(case: Case, root: Path) -> None:
    own = case.found(root, "distill.selection=per_layer", trials=2)
    assert own.source_layer is None
    assert facts(own)["chosen"]["layer"] is None
    for layer, rows in own.basis.items():
        delta = case.activations.difference(layer)[0]
        torch.testing.assert_close(rows[0], delta / delta.norm())


def test_the_control_with_shuffled_labels_keeps_the_strengths(
    case: Case, found: Directions
) -> None:
    null = permuted_directions(case.activations, found, 0)
    assert null.strengths == found.strengths
    assert abs(float(null.basis[0][0] @ found.basis[0][0])) < 0.9


def test_the_whole_program_runs_it(case: Case, tmp_path: Path) -> None:
    settings = case.laboratory(tmp_path, "distill.max_kl=9").settings
    result = obliterate(str(case.folder), tmp_path / "out", settings, store=Store(tmp_path / "s"))
    assert result.report.edited.name == "out"
    assert load_directions(next((tmp_path / "out").rglob("directions.safetensors"))).strengths


def trial(refusals: float, kl: float) -> Trial:
    return Trial({}, Outcome((refusals, kl), {}))


def test_the_fewest_refusals_within_the_limit_win_and_then_the_least_divergence() -> None:
    trials = (trial(0.0, 0.3), trial(2.0, 0.05), trial(2.0, 0.04), trial(9.0, 0.0))
    assert kernel_search.fewest_refusals(trials, 0.1) == trials[2]
    assert kernel_search.fewest_refusals(trials, 0.3) == trials[0]


def test_no_trial_within_the_limit_is_an_error_that_says_how_near_one_came() -> None:
    with pytest.raises(DirectionError, match=r"none of 2 trials .*max_kl=0\.1; the least is 0\.12"):
        kernel_search.fewest_refusals((trial(0.0, 0.3), trial(2.0, 0.12)), 0.1)


def test_a_model_that_refuses_nothing_has_nothing_to_search(case: Case, tmp_path: Path) -> None:
    select = case.splits.select
    harmless = dataclasses.replace(select, harmful=select.harmless)
    splits = dataclasses.replace(case.splits, select=harmless)
    with pytest.raises(DirectionError, match=r"refuses none of 6 harmful select prompts"):
        dataclasses.replace(case, splits=splits).found(tmp_path)


@pytest.mark.parametrize("extractor", ["leace", "biprojected_difference_of_means"])
def test_extractors_without_a_direction_between_layers_are_refused_before_the_model_runs(
    case: Case, tmp_path: Path, extractor: str
) -> None:
    settings = case.laboratory(tmp_path, f"distill.extractor={extractor}").settings
    with pytest.raises(UsageError, match=rf"'{extractor}' has none there"):
        obliterate("no such model", tmp_path / "out", settings)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tune": {"steps": 1}}, r"two searches for one edit"),
        ({"max_rank": 2}, r"set distill\.max_rank=1"),
        ({"max_strength": 1.3}, r"distill\.max_strength=1"),
        ({"kernel": {"trials": -1}}, r"distill\.kernel\.trials"),
    ],
)
def test_settings_that_it_would_not_follow_are_refused(more: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_from({"distill": {"kernel": {"trials": 3}, **more}})
