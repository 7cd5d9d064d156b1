"""The atlas: what is asked for is run once, found again, and written as one folder."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from obliteratus.analysis import activation_probing as module
from obliteratus.analysis.findings import load_findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.errors import MeasurementError, ObliteratusError, StorageError, UsageError
from obliteratus.events import Event, StageFinished, listening
from obliteratus.pipeline.analyze import AnalysisResult, analyze
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings

FEW = ("analyze.permutations=39", "analyze.prompts=4")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def probed(refuser: Path, output: Path, store: Store) -> AnalysisResult:
    settings = tiny_settings(refuser, "advanced", "analyze.modules=[activation_probing]", *FEW)
    return analyze(str(refuser), output, settings, store=store)


def test_findings_and_atlas_are_written(refuser: Path, tmp_path: Path, store: Store) -> None:
    result = probed(refuser, tmp_path / "out", store)
    found = result.atlas.findings["activation_probing"]
    assert found.estimates["best_auc"].verdict == "supported"
    back = load_findings(result.folder)
    assert back["activation_probing"].as_json() == found.as_json()
    assert (back["activation_probing"].arrays["auc"] == found.arrays["auc"]).all()
    page = (result.folder / "atlas.html").read_text()
    assert found.headline in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    facts = json.loads((result.folder / "analysis.json").read_text())
    assert facts["left_out"] == []
    assert facts["settings"]["analyze"]["modules"] == ["activation_probing"]


def test_the_same_again_is_found_in_the_cache(
    refuser: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probed(refuser, tmp_path / "one", store)
    monkeypatch.setattr(module, "activation_probing", None)  # a second run would call it
    events: list[Event] = []
    with listening(events.append):
        second = probed(refuser, tmp_path / "two", store)
    ends = [each for each in events if isinstance(each, StageFinished) and each.stage == "analyze"]
    assert [end.cached for end in ends] == [True]
    assert second.atlas.findings["activation_probing"].as_json() == (
        first.atlas.findings["activation_probing"].as_json()
    )


def test_what_has_no_meaning_is_left_out_with_its_reason(
    refuser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MeasurementError("there is nothing to read.")

    monkeypatch.setattr(module, "activation_probing", fails)
    result = probed(refuser, tmp_path / "out", Store(tmp_path / "store"))
    assert result.atlas.findings == {}
    assert [each.reason for each in result.atlas.left_out] == ["there is nothing to read."]
    assert "there is nothing to read." in (result.folder / "atlas.html").read_text()


def compared(refuser: Path, output: Path, store: Store, other: Path | None) -> AnalysisResult:
    few = ("analyze.modules=[cross_model_transfer]", "analyze.text_passages=40", *FEW)
    given = () if other is None else (f"analyze.other={other}",)
    settings = tiny_settings(refuser, "advanced", *few, *given)
    return analyze(str(refuser), output, settings, store=store)


def test_a_second_model_is_compared_on_the_same_prompts(
    refuser: Path, tmp_path: Path, store: Store
) -> None:
    alone = compared(refuser, tmp_path / "alone", store, None).atlas
    assert [each.reason for each in alone.left_out] == [
        f"there is no second model to compare {refuser} with. Give one with --other "
        "(analyze.other)."
    ]
    assert alone.facts["other"] is None
    other = shutil.copytree(refuser, tmp_path / "other")
    both = compared(refuser, tmp_path / "both", store, other).atlas
    found = both.findings["cross_model_transfer"]
    assert found.facts["kinship"]["same_base"]
    assert found.estimates["cka"].value == pytest.approx(1)
    for way in ("added", "removed"):
        brought, own = found.arrays[way][:2]
        assert abs(own) > 0.1
        # The selected direction lacks what all prompts share, the other's own does not.
        assert brought == pytest.approx(own, rel=0.15)
    assert both.facts["other"]["asked"] == str(other)


def test_another_second_model_is_not_taken_from_the_cache(
    refuser: Path, tmp_path: Path, store: Store
) -> None:
    folder = shutil.copytree(refuser, tmp_path / "other")

    def cached(name: str) -> list[bool]:
        events: list[Event] = []
        with listening(events.append):
            compared(refuser, tmp_path / name, store, folder)
        return [e.cached for e in events if isinstance(e, StageFinished) and e.stage == "analyze"]

    cached("first")
    assert cached("again") == [True]
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("down_proj.weight"))
    save_file(
        {**weights, name: 1.01 * weights[name]}, folder / "model.safetensors", {"format": "pt"}
    )
    assert cached("changed") == [False]


def test_a_mistyped_second_model_shows_before_anything_is_measured(
    refuser: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(
        refuser, "advanced", "analyze.modules=[activation_probing,cross_model_transfer]",
        f"analyze.other={tmp_path / 'nothing'}", *FEW,
    )  # fmt: skip
    events: list[Event] = []
    with listening(events.append), pytest.raises(ObliteratusError, match="nothing"):
        analyze(str(refuser), tmp_path / "out", settings, store=Store(tmp_path / "store"))
    ends = [each.stage for each in events if isinstance(each, StageFinished)]
    assert ends == ["summon"]


def test_an_unknown_analysis_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "advanced", "analyze.modules=[activation_probin]")
    with pytest.raises(UsageError, match="Did you mean 'activation_probing'"):
        analyze("no/such-model", tmp_path / "out", settings, store=Store(tmp_path / "store"))
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_is_kept(refuser: Path, tmp_path: Path, store: Store) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(StorageError, match="out"):
        probed(refuser, tmp_path / "out", store)
    assert (tmp_path / "out" / "mine").exists()


def test_every_analysis_says_what_it_asks() -> None:
    for name in ANALYSES:
        entry = ANALYSES[name]
        for words in (entry.title, entry.question, entry.method, entry.null, entry.source):
            assert len(words) > 5
        assert entry.question.endswith("?")
