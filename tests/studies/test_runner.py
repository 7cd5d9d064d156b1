"""Units on the tiny refuser: one model in memory, measured alike, given back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import DeviationRecorded, listening
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.store import Store
from obliteratus.studies import runner as module
from obliteratus.studies.reading import study_of
from obliteratus.studies.runner import StudyRunner, threads_per_worker
from obliteratus.studies.units import unit_of, units
from obliteratus.verify.identity import weights_fingerprint

TEXT = "The river runs past the old mill and on to the sea, and nobody minds the rain.\n\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT + TEXT.replace("river", "road").replace("mill", "inn") + TEXT.upper())
    return path


def study(refuser: Path, text: Path, **values: Any):
    base: dict[str, Any] = {
        "name": "tiny",
        "models": [str(refuser)],
        "prompts": 8,
        "metrics": ["refusal_harmful", "log_odds_harmful", "kl_first", "perplexity_heldout"],
        "common": {
            "prompts": {
                "harmful": str(refuser / "harmful.jsonl"),
                "harmless": str(refuser / "harmless.jsonl"),
            },
            "distill": {"select_prompts": 8, "max_kl": 5.0, "max_depth": 1.0, "max_strength": 1.0},
            "verify": {"max_new_tokens": 28, "text": str(text)},
        },
    }
    return study_of({**base, **values}, "test")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def runner(store: Store) -> StudyRunner:
    return StudyRunner(store.root, 1)


def rows(result: Any) -> dict[str, Any]:
    return {row["key"]: row for row in result["rows"]}


def test_an_edit_ends_refusal_and_the_model_is_given_back(
    refuser: Path, text: Path, runner: StudyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    summon = module.summon

    def counted(name: str, *args: Any, **kwargs: Any):
        loaded.append(name)
        return summon(name, *args, **kwargs)

    monkeypatch.setattr(module, "summon", counted)
    parts = [{"part": "layer", "layers": "0"}, {"part": "head", "layers": "0", "by": "zero"}]
    found, _ = units(study(refuser, text, methods=["basic"], ablations=parts))
    assert [unit.name for unit in found[:2]] == ["basic seed 0", "L0 mean"]
    results = [runner(found[i].entry) for i in (0, 1, 2, 0)]
    edit = rows(results[0])["refusal_harmful"]
    assert edit["original"]["value"] == 1.0
    assert edit["edited"]["value"] <= 0.25
    assert results[0]["facts"]["worst_error"] < 1e-6
    assert results[3] == results[0]  # after ablations and another edit of the same weights
    assert rows(results[2])["refusal_harmful"]["change"]["value"] == 0  # one head is not enough
    assert len(loaded) == 1
    assert runner._held is not None
    assert weights_fingerprint(runner._held.model) == runner._held.weights


def test_an_edit_is_measured_as_a_run_measures_it(
    refuser: Path, text: Path, runner: StudyRunner, store: Store, tmp_path: Path
) -> None:
    # It edits the embedding, to which the head was tied: the original's head must not change.
    (unit,), _ = units(study(refuser, text, methods=["advanced"]))
    mine = rows(runner(unit.entry))
    verify = unit.settings.verify.model_copy(
        update={"over_refusal": 0, "coherence": False, "sequence_prompts": 2, "sequence_tokens": 4}
    )
    settings = unit.settings.model_copy(update={"verify": verify})
    report = obliterate(str(refuser), tmp_path / "edited", settings, store=store).report
    for key in ("refusal_harmful", "kl_first", "perplexity_heldout", "log_odds_harmful"):
        theirs = report.row(key)
        assert theirs is not None
        assert mine[key]["edited"]["value"] == pytest.approx(theirs.edited.value, rel=1e-3)
    assert mine["refusal_harmful"]["p_value"] == report.row("refusal_harmful").p_value


def test_an_edit_of_the_head_is_not_compared_with_itself(
    refuser: Path, text: Path, runner: StudyRunner
) -> None:
    head = {"edit": {"strengths": {"components": {"head": 1.0}}}}
    (unit,), _ = units(
        study(refuser, text, methods=["basic"], settings=[head], metrics=["kl_first"])
    )
    (plain,), _ = units(study(refuser, text, methods=["basic"], metrics=["kl_first"]))
    with_head, without = (rows(runner(each.entry))["kl_first"] for each in (unit, plain))
    assert with_head["edited"]["value"] != without["edited"]["value"]


def test_rewrites_are_counted_by_the_prompts_that_they_came_from(
    refuser: Path, text: Path, runner: StudyRunner
) -> None:
    layer = [{"part": "layer", "layers": "0"}]
    metrics = ["refusal_harmful", "log_odds_harmful", "kl_first"]
    (unit,), _ = units(study(refuser, text, ablations=layer, prompts=20, metrics=metrics))
    result = runner(unit.entry)
    assert result["facts"] == {"prompts": 20, "independent_prompts": 8}
    for row in rows(result).values():
        assert row["edited"]["n"] == 8
    assert rows(result)["log_odds_harmful"]["test"] == "sign flips by prompt"


def test_the_original_is_measured_once_for_all_workers(
    refuser: Path, text: Path, runner: StudyRunner, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = units(study(refuser, text, ablations=[{"part": "layer"}], metrics=["kl_first"]))
    first = runner(found[0].entry)
    reads: list[int] = []
    read = module.StudyBench.read

    def counted(self: Any):
        reads.append(1)
        return read(self)

    monkeypatch.setattr(module.StudyBench, "read", counted)
    other = StudyRunner(store.root, 1)
    assert other(found[0].entry) == first
    assert len(reads) == 1  # the ablated one: the original was in the cache


def test_another_model_takes_the_place_of_the_first(
    refuser: Path, text: Path, store: Store, tmp_path: Path
) -> None:
    found, _ = units(
        study(
            refuser,
            text,
            ablations=[{"part": "layer", "layers": "0"}],
            metrics=["kl_first"],
            models=[str(refuser), f"{refuser}/../{refuser.name}"],
        )
    )
    one = StudyRunner(store.root, 1)
    one(found[0].entry)
    held = one._held
    one(found[1].entry)
    assert one._held is not held
    assert one._held is not None
    assert one._held.affinity == found[1].entry.affinity != found[0].entry.affinity


def test_what_cannot_be_measured_is_an_error_and_not_an_empty_row(
    refuser: Path, text: Path, runner: StudyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unit, *_), _ = units(
        study(
            refuser,
            text,
            ablations=[{"part": "layer", "layers": "0"}],
            metrics=["log_odds_harmful"],
        )
    )
    fresh = StudyRunner(runner._store.root, 1)
    monkeypatch.setattr("obliteratus.studies.bench.calibrated", lambda *_, **__: (None, ()))
    with pytest.raises(MeasurementError, match="none of log_odds_harmful can be measured"):
        fresh(unit.entry)


def test_a_unit_survives_json_and_its_id_tells_every_setting(refuser: Path, text: Path) -> None:
    one, _ = units(study(refuser, text, methods=["basic"], seeds=[0, 1]))
    assert [unit_of(unit.entry.spec) for unit in one] == list(one)
    other, _ = units(
        study(refuser, text, methods=["basic"], seeds=[0, 1], settings=[{"edit": {"strength": 1}}])
    )
    ids = [unit.entry.id for unit in (*one, *other)]
    assert len(set(ids)) == len(ids)
    assert [
        unit.entry.id for unit in units(study(refuser, text, methods=["basic"], seeds=[0, 1]))[0]
    ] == ids[:2]


def test_every_combination_is_a_unit_and_ablations_are_not_repeated_by_seeds(
    refuser: Path, text: Path
) -> None:
    found, _ = units(
        study(
            refuser,
            text,
            methods=["basic", "advanced"],
            seeds=[0, 1, 2],
            settings=[{}, {"edit": {"strength": 0.5}}],
            ablations=[{"part": "layer"}, {"part": "layer", "by": "zero"}],
        )
    )
    kinds = [unit.kind for unit in found]
    assert (kinds.count("edit"), kinds.count("ablation")) == (2 * 3 * 2, 3 * 2)


MISTAKES = {
    "no model": ({"models": []}, "which model"),
    "method": ({"methods": ["basik"]}, "no method called 'basik'. Did you mean 'basic'"),
    "behaviour": ({"behaviours": ["refusals"]}, "no behaviour called 'refusals'"),
    "setting": ({"common": {"edit": {"strenght": 1}}}, "Did you mean 'edit.strength'"),
    "unused": ({"common": {"verify": {"thoughts": "apart"}}}, "verify.thoughts is not used by a"),
    "prompts": ({"common": {"verify": {"prompts": 3}}}, "or write prompts at its top"),
    "analyses": ({"settings": [{"analyze": {"prompts": 3}}]}, "a study runs no analyses"),
    "axis": ({"common": {"seed": 3}}, "'seed' is an axis of the study"),
    "packed": ({"common": {"model": {"quantize": "4bit"}}}, "a packed model cannot be edited"),
    "model": ({"models": ["no-such-model-here"]}, "no-such"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_shows_before_anything_is_loaded(
    name: str, refuser: Path, text: Path
) -> None:
    values, words = MISTAKES[name]
    with pytest.raises(UsageError) as caught:
        units(study(refuser, text, **{"methods": ["basic"], **values}))
    assert words in str(caught.value)


def test_a_part_that_a_model_has_not_is_a_deviation_and_no_part_at_all_an_error(
    refuser: Path, text: Path
) -> None:
    heard: list[Any] = []
    with listening(heard.append):
        found, missing = units(
            study(refuser, text, ablations=[{"part": "layer"}, {"part": "mixer"}])
        )
    assert len(found) == 3
    assert [each.asked for each in missing] == [f"ablations of 'mixer' by mean in {refuser}"]
    assert [e.deviation for e in heard if isinstance(e, DeviationRecorded)] == missing
    with pytest.raises(UsageError, match="has no units: its models have none of the parts"):
        units(study(refuser, text, ablations=[{"part": "mixer"}]))


def test_workers_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 8)
    assert [threads_per_worker(n) for n in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_per_worker(1) == 2
    assert torch.get_num_threads() >= 1


def test_a_dose_is_measured_where_the_strength_is_chosen_by_it(refuser: Path, text: Path) -> None:
    by_dose = {"edit": {"auto_regularize": True}}
    found, _ = units(study(refuser, text, methods=["basic"], settings=[{}, by_dose]))
    assert [unit.settings.verify.dose for unit in found] == [False, True]


def test_what_there_are_no_look_alikes_for_is_left_out_and_said(
    refuser: Path, text: Path, runner: StudyRunner
) -> None:
    asked = study(
        refuser,
        text,
        ablations=[{"part": "layer", "layers": "0"}],
        metrics=["over_refusal", "kl_first"],
    )
    common = {**asked.common, "verify": {**asked.common["verify"], "over_refusal": 0}}
    (unit,), _ = units(asked.model_copy(update={"common": common}))
    result = runner(unit.entry)
    assert set(rows(result)) == {"kl_first"}
    assert "over_refusal" in [each["asked"] for each in result["deviations"]]
