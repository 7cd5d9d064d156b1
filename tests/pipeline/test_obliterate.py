"""The main job on a tiny model that refuses."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from obliteratus.errors import (
    EditError,
    LeakError,
    ModelSourceError,
    StorageError,
    UsageError,
)
from obliteratus.events import DeviationRecorded, Event, StageFinished, listening
from obliteratus.pipeline import run as stages_of_a_run
from obliteratus.pipeline.obliterate import RunResult, obliterate
from obliteratus.pipeline.record import read_run
from obliteratus.release.directions_file import load_directions
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings
from obliteratus.verify.report import Report


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def result(refuser: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    output = tmp_path_factory.mktemp("out") / "edited"
    return obliterate(str(refuser), output, tiny_settings(refuser), store=store)


def row(report: Report, key: str):
    return next(row for row in report.rows if row.key == key)


def test_refusal_is_gone_and_the_original_was_measured(result: RunResult) -> None:
    refusal = row(result.report, "refusal_harmful")
    assert refusal.original.value == 1.0
    assert refusal.edited.value <= 0.25
    assert refusal.change.interval[1] < 0


def test_the_folder_is_an_ordinary_model(result: RunResult) -> None:
    model = AutoModelForCausalLM.from_pretrained(result.folder)
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    assert model.config.tie_word_embeddings is False
    assert "assistant" in tokenizer.chat_template
    assert (result.folder / "README.md").read_text().startswith("---")


def test_every_record_is_there(result: RunResult) -> None:
    records = result.folder / "obliteratus"
    names = {path.name for path in records.iterdir()}
    assert {
        "directions.safetensors",
        "plan.json",
        "receipt.json",
        "report.html",
        "report.json",
        "run.json",
        "undo.safetensors",
    } <= names
    directions = load_directions(records / "directions.safetensors")
    assert set(directions.basis) == {"embedding", 0, 1, 2}
    receipt = json.loads((records / "receipt.json").read_text())
    assert 0 < receipt["worst_error"] < 1e-6
    assert receipt["proof"]["measured"] == "stream"
    assert receipt["proof"]["worst"] <= receipt["proof"]["tolerance"]
    run = json.loads((records / "run.json").read_text())
    assert set(run["seconds"]) == {"summon", "probe", "distill", "excise", "rebirth", "verify"}
    assert run["source"]["fingerprint"]
    assert run["prompts"]["harmful"] == 48


def test_a_model_probed_packed_is_edited_and_measured_unpacked(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    settings = tiny_settings(refuser, "advanced", "model.quantize=8bit", "verify.prompts=16")
    result = obliterate(str(refuser), tmp_path / "edited", settings, store=store)
    refusal = row(result.report, "refusal_harmful")
    assert refusal.original.value == 1.0
    assert refusal.edited.value <= 0.25
    assert {result.report.original.quantization, result.report.edited.quantization} == {None}
    run = json.loads((result.folder / "obliteratus" / "run.json").read_text())
    (deviation,) = [each for each in run["executed"] if each["where"] == "model"]
    assert "its 8bit weights were unpacked to float32" in deviation["done"]
    assert deviation in [vars(each) for each in result.report.deviations]
    receipt = json.loads((result.folder / "obliteratus" / "receipt.json").read_text())
    assert receipt["proof"]["worst"] <= receipt["proof"]["tolerance"]
    assert "quantization_config" not in json.loads((result.folder / "config.json").read_text())
    module = AutoModelForCausalLM.from_pretrained(result.folder)
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


def test_a_search_that_found_nothing_better_is_a_deviation_also_when_it_is_cached(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    wild = ("distill.tune.steps=1", "distill.tune.direction_rate=50", "verify.prompts=4")
    settings = tiny_settings(refuser, "tuned", *wild, "distill.tune.kl_budget=1e-9")
    for name in ("first", "again"):
        events: list[Event] = []
        with listening(events.append):
            report = obliterate(str(refuser), tmp_path / name, settings, store=store).report
        (kept,) = [each for each in report.deviations if each.where == "distill"]
        assert "those of the selection" in kept.done
        said = [event.deviation for event in events if isinstance(event, DeviationRecorded)]
        assert said.count(kept) == 1


def test_too_little_memory_to_unpack_is_said_before_probe(
    refuser: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obliteratus.models.quantised.ROOM", 1e9)
    seen: list[Event] = []
    settings = tiny_settings(refuser, "advanced", "model.quantize=8bit")
    with listening(seen.append), pytest.raises(EditError, match="is edited unpacked, which takes"):
        obliterate(str(refuser), tmp_path / "edited", settings, store=store)
    assert [event.stage for event in seen if isinstance(event, StageFinished)] == ["summon"]


def test_a_strength_above_one_is_found_and_used(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    settings = tiny_settings(refuser, "advanced", "distill.max_strength=1.2", "verify.prompts=4")
    obliterate(str(refuser), tmp_path / "edited", settings, store=store)
    records = tmp_path / "edited" / "obliteratus"
    directions = load_directions(records / "directions.safetensors")
    assert directions.strength > 1
    receipt = json.loads((records / "receipt.json").read_text())
    used = {strength for edit in receipt["edits"] for strength in edit["strengths"]}
    assert used == {directions.strength}
    assert receipt["proof"] is None
    assert 0 < receipt["worst_error"] < 1e-6


def test_an_amplified_model_leans_towards_refusal_and_is_held_to_it(
    refuser: Path, tmp_path: Path
) -> None:
    """The refuser refuses all that is harmful already; what is left to grow are harmless ones.

    These are kept where they are refused, so not in the store that others look for refusals in.
    """
    settings, store = tiny_settings(refuser, "amplified"), Store(tmp_path / "store")
    found = obliterate(str(refuser), tmp_path / "edited", settings, store=store)
    assert found.report.claim("amplification") is not None
    assert found.report.claim("refusal") is None
    assert row(found.report, "refusal_harmful").edited.value == 1.0
    assert row(found.report, "log_odds_harmless").change.interval[0] > 0
    card = (found.folder / "README.md").read_text()
    assert "Amplifies, at strength -0.25, 1 direction" in card
    assert "is no safeguard" in card
    assert json.loads((found.folder / "obliteratus" / "receipt.json").read_text())["proof"] is None


def test_tuned_strengths_reach_the_weights(refuser: Path, store: Store, tmp_path: Path) -> None:
    few = ("distill.tune.steps=10", "distill.tune.prompts=8", "verify.prompts=4")
    settings = tiny_settings(refuser, "tuned", *few)
    result = obliterate(str(refuser), tmp_path / "edited", settings, store=store)
    records = result.folder / "obliteratus"
    directions = load_directions(records / "directions.safetensors")
    assert directions.provenance["tuning"]["best_step"] == 10
    assert directions.strengths is not None
    for edit in json.loads((records / "receipt.json").read_text())["edits"]:
        layer = "embedding" if edit["layer"] is None else edit["layer"]
        assert edit["strengths"] == directions.strengths[layer][edit["component"]].tolist()


def test_nothing_of_the_harmful_answers_is_stored(result: RunResult, store: Store) -> None:
    texts = [
        path.read_text(errors="ignore")
        for root in (result.folder, store.root)
        for path in root.rglob("*.json*")
    ]
    assert texts
    assert not any("I cannot help" in text for text in texts)


def test_a_recorded_run_repeats_byte_for_byte(result: RunResult, tmp_path: Path) -> None:
    recorded = read_run(result.folder / "obliteratus" / "run.json")
    again = obliterate(
        recorded.model, tmp_path / "again", recorded.settings, store=Store(tmp_path / "store")
    )
    compared = 0
    for pattern in (
        "*.safetensors",
        "config.json",
        "obliteratus/plan.*",
        "obliteratus/*.safetensors",
    ):
        for path in result.folder.glob(pattern):
            other = again.folder / path.relative_to(result.folder)
            assert path.read_bytes() == other.read_bytes(), path.name
            compared += 1
    assert compared >= 5


def test_a_recorded_run_refuses_another_model(refuser: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="not the model of the recorded run"):
        obliterate(
            str(refuser),
            tmp_path / "other",
            tiny_settings(refuser),
            store=store,
            fingerprint="0" * 64,
        )
    assert not (tmp_path / "other").exists()


def test_an_interrupted_run_leaves_nothing_and_resumes(
    refuser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(refuser)
    store = Store(tmp_path / "store")
    output = tmp_path / "out" / "edited"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages_of_a_run, "compare", interrupt)
        obliterate(str(refuser), output, settings, store=store)
    assert not (tmp_path / "out").exists()
    events: list[Event] = []
    with listening(events.append):
        obliterate(str(refuser), output, settings, store=store)
    finished = [event for event in events if isinstance(event, StageFinished)]
    cached = {event.stage for event in finished if event.cached}
    assert {"probe", "distill"} <= cached
    assert all(event.saved > 0 for event in finished if event.cached)
    assert output.is_dir()


def test_an_existing_folder_is_not_overwritten_without_force(
    refuser: Path, result: RunResult, store: Store
) -> None:
    before = {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")}
    with pytest.raises(StorageError, match="already exists"):
        obliterate(str(refuser), result.folder, tiny_settings(refuser), store=store)
    assert before == {path: path.stat().st_mtime_ns for path in result.folder.rglob("*")}


@pytest.fixture(scope="module")
def weights(refuser: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(refuser).state_dict()


def test_strength_zero_gives_the_original_back(
    refuser: Path, store: Store, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    settings = tiny_settings(refuser, "advanced", "edit.strength=0", "verify.random_controls=0")
    result = obliterate(str(refuser), tmp_path / "same", settings, store=store)
    saved = AutoModelForCausalLM.from_pretrained(result.folder)
    assert saved.config.tie_word_embeddings is True
    for name, value in saved.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert row(result.report, "kl_first").edited.value == 0.0


def test_the_aggressive_method_makes_another_pass_only_on_evidence(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    result = obliterate(
        str(refuser), tmp_path / "edited", tiny_settings(refuser, "aggressive"), store=store
    )
    plans = sorted(result.folder.glob("obliteratus/plan*.json"))
    assert 1 <= len(plans) <= 3
    assert row(result.report, "refusal_harmful").edited.value < 0.5


def test_a_partial_edit_is_reported_layer_by_layer(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    settings = tiny_settings(
        refuser,
        "advanced",
        "edit.layers=1-2",
        "edit.strengths={layers: {2: 0.5}, components: {head: 0.3}}",
        "distill.extractor=biprojected_difference_of_means",
        "distill.max_rank=1",
        "verify.prompts=4",
    )
    report = obliterate(str(refuser), tmp_path / "edited", settings, store=store).report
    assert report.edit is not None
    rows = {row.layer: row for row in report.edit.layers}
    assert set(rows) == {"embedding", 0, 1, 2}
    assert rows[0].after == pytest.approx(rows[0].before)
    assert rows[1].after > 1e-4
    assert 0 < min(report.edit.shares.values()) < 1
    assert report.original.head != report.edited.head
    receipt = json.loads((tmp_path / "edited" / "obliteratus" / "receipt.json").read_text())
    assert [row["layer"] for row in receipt["residual"]] == ["embedding", 0, 1, 2]
    assert receipt["proof"]["measured"] == "writes"
    used = {(e["layer"], e["component"]): e["strengths"] for e in receipt["edits"]}
    assert used[1, "mlp"] == [1.0]
    assert used[2, "attention"] == [0.5]
    assert used[None, "head"] == [0.3]


def test_an_affine_edit_brings_every_layer_to_the_harmless_mean(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    settings = tiny_settings(refuser, "advanced", "edit.affine=mean", "verify.prompts=4")
    report = obliterate(str(refuser), tmp_path / "edited", settings, store=store).report
    assert report.edit is not None
    assert max(row.after_largest for row in report.edit.layers) < 1e-10
    assert min(row.before for row in report.edit.layers) > 1e-4
    assert {control.kind for control in report.controls} == {
        "edit",
        "random",
        "permuted",
        "identity",
    }


def test_leace_is_measured_where_it_reads_and_has_controls_that_lean_as_far(
    refuser: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(
        refuser,
        "advanced",
        "distill.extractor=leace",
        "edit.norm=none",
        "edit.affine=mean",
        "edit.strength=1",
        "verify.prompts=4",
    )
    with pytest.raises(EditError, match="the filter is far longer than what it removes"):
        obliterate(str(refuser), tmp_path / "edited", settings, store=store)
    monkeypatch.setattr("obliteratus.edits.planner.SIZE_GATE", 9.0)  # 64 prompts, width 32
    report = obliterate(str(refuser), tmp_path / "edited", settings, store=store).report
    assert report.edit is not None
    assert max(row.after_largest for row in report.edit.layers) < 1e-9
    found = load_directions(tmp_path / "edited" / "obliteratus" / "directions.safetensors")
    assert set(found.filters) == set(found.basis)
    assert found.mean is not None
    assert float(found.filters[0] @ found.basis[0].T) == pytest.approx(1)
    assert float(found.filters[0].norm()) > 1.01
    kinds = {control.kind for control in report.controls}
    assert kinds == {"edit", "random", "permuted", "identity"}


def test_what_distill_would_refuse_is_refused_before_the_model_is_loaded(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    settings = tiny_settings(refuser, "advanced", "distill.extractor=leace", "edit.passes=2")
    with pytest.raises(UsageError, match="exclude each other"):
        obliterate("no/such/model", tmp_path / "edited", settings, store=store)
    settings = tiny_settings(refuser, "advanced", "distill.knobs={quantile: 0.9}")
    with pytest.raises(UsageError, match="has no knob 'quantile'"):
        obliterate("no/such/model", tmp_path / "edited", settings, store=store)


def test_an_allowed_leak_is_in_the_report_and_on_the_page(
    refuser: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obliteratus.edits.proof.TOLERANCE", {torch.float32: 1e-12})
    settings = tiny_settings(refuser, "advanced", "verify.prompts=4", "verify.random_controls=0")
    with pytest.raises(LeakError, match="pass --allow-leak"):
        obliterate(str(refuser), tmp_path / "refused", settings, store=store)
    allowed = settings.model_copy(
        update={"edit": settings.edit.model_copy(update={"allow_leak": True})}
    )
    report = obliterate(str(refuser), tmp_path / "edited", allowed, store=store).report
    assert report.edit is not None
    assert report.edit.leaks
    assert {leak.done for leak in report.deviations} >= set(report.edit.leaks)
    page = (tmp_path / "edited" / "obliteratus" / "report.html").read_text()
    assert "Allowed by --allow-leak" in page


def test_layers_that_the_model_lacks_are_refused_before_anything_is_measured(
    refuser: Path, store: Store, tmp_path: Path
) -> None:
    events: list[Event] = []
    with listening(events.append), pytest.raises(UsageError, match="names layer 9; the model has"):
        settings = tiny_settings(refuser, "advanced", "edit.layers=9")
        obliterate(str(refuser), tmp_path / "edited", settings, store=store)
    assert not [event for event in events if isinstance(event, StageFinished)]
