"""A sweep measures what runs at its strengths would, and leaves the model as it was."""

import json
from functools import partial

import pytest

from obliteratus.cli.main import main
from obliteratus.cli.sweep import between
from obliteratus.community.book import RunBook
from obliteratus.errors import StorageError, UsageError
from obliteratus.models.summon import summon
from obliteratus.release.directions_file import load_directions
from obliteratus.store import Store
from obliteratus.studies import sweep as module
from obliteratus.studies.candidates import InMemory, InOneBatch
from obliteratus.studies.sweep import sweep
from obliteratus.testing.refuser import tiny_settings
from obliteratus.verify.identity import weights_fingerprint


@pytest.fixture(scope="module")
def settings(refuser):
    found = tiny_settings(refuser, "basic", "verify.text_documents=4")
    verify = found.verify.model_copy(update={"coherence": False})
    return found.model_copy(update={"verify": verify})


@pytest.fixture(scope="module")
def found(refuser, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    store = Store(folder / "cache")
    return sweep(str(refuser), folder / "out", settings, points=8, store=store), folder


def test_refusal_falls_with_the_strength_and_the_original_is_at_zero(found):
    points = {point.strength: point for point in found[0].points}
    at = {strength: points[strength].rows["refusal_harmful"].edited.value for strength in points}
    assert at[0.0] == points[0.0].rows["refusal_harmful"].original.value > 0.9
    assert at[1.0] < 0.1
    assert points[0.0].rows["kl_first"].edited.value == 0
    assert points[2.0].rows["kl_first"].edited.value > points[1.0].rows["kl_first"].edited.value
    assert len(points) == 8


def test_log_odds_fall_where_refusal_is_removed(found):
    changes = {p.strength: p.rows["log_odds_harmful"].change.value for p in found[0].points}
    assert changes[0.0] == 0 > changes[1.0]


def test_every_number_has_an_interval(found):
    for point in found[0].points:
        for key in module.CURVES:
            estimate = point.curve(key)
            if estimate is not None:
                assert estimate.interval[0] <= estimate.value <= estimate.interval[1]


def test_a_point_is_what_an_edit_of_that_strength_does(refuser, settings, found):
    from obliteratus.edits.memory import excise

    store = Store(found[1] / "cache")
    ready = module.prepared(str(refuser), settings, 0, store)
    bench, planned = ready.bench, ready.plan
    point = next(p for p in found[0].points if p.strength == 1.0)
    _ = bench.original
    excise(bench.model, planned)
    rows = {row.key: row for row in bench.rows(bench.read())}
    assert set(rows) == set(point.rows)
    for key, row in rows.items():
        assert row.edited.value == pytest.approx(point.rows[key].edited.value, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("way", [InOneBatch, partial(InMemory, alone="asked")])
def test_the_model_is_as_it_was(refuser, settings, tmp_path, way):
    ready = module.prepared(str(refuser), settings, 4, Store(tmp_path))
    bench, planned = ready.bench, ready.plan
    before = weights_fingerprint(bench.model)
    for _ in way(bench, planned).measured((1.5, -1.0)):
        assert weights_fingerprint(bench.model) == before
    assert before == weights_fingerprint(summon(str(refuser), settings.model))


def test_strengths_that_cannot_share_batches_are_swept_one_by_one(refuser, settings, tmp_path):
    edit = settings.edit.model_copy(update={"norm": "row"})
    kept = settings.model_copy(update={"edit": edit})
    found = sweep(str(refuser), tmp_path / "out", kept, points=3, prompts=4, store=Store(tmp_path))
    assert "rescales" in str(found.alone)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["one_by_one_because"]


def test_its_directions_steer_as_its_points_say(found):
    written = json.loads((found[1] / "out" / "sweep.json").read_text())
    directions = load_directions(found[1] / "out" / "directions.safetensors")
    assert written["strength"] == directions.strength
    assert directions.basis.keys() == found[0].directions.basis.keys()


def test_what_is_written_can_be_read(found):
    written = json.loads((found[1] / "out" / "sweep.json").read_text())
    assert [p["strength"] for p in written["points"]] == [p.strength for p in found[0].points]
    assert written["split"] == "select"
    assert written["one_by_one_because"] is None
    assert (found[1] / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_there_is_not_replaced(refuser, settings, found):
    with pytest.raises(StorageError, match="already exists"):
        sweep(str(refuser), found[1] / "out", settings)


@pytest.mark.parametrize("text", ["1", "a..b", "1..", "2:3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UsageError, match="is no range"):
        between(text)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, -1.0), (-9.0, 2.0)])
def test_a_range_that_is_empty_or_too_wide_is_refused(refuser, settings, tmp_path, low, high):
    with pytest.raises(UsageError, match="no range within"):
        sweep(str(refuser), tmp_path / "x", settings, low=low, high=high)


def test_two_points_are_refused(refuser, settings, tmp_path):
    with pytest.raises(UsageError, match="make no curve"):
        sweep(str(refuser), tmp_path / "x", settings, points=2)


def test_the_command_prints_the_curve(refuser, settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OBLITERATUS_RUNS", str(tmp_path / "runs.sqlite"))
    prompts = [f"--{name}={refuser / name}.jsonl" for name in ("harmful", "harmless")]
    words = [str(refuser), *prompts, "--points", "3", "--prompts", "4", "-m", "basic"]
    assert (
        main(["sweep", *words, "--set", "verify.max_new_tokens=8", "-o", str(tmp_path / "o")]) == 0
    )
    shown = capsys.readouterr().out
    assert "95 % intervals" in shown
    assert (tmp_path / "o" / "sweep.png").exists()
    with RunBook(tmp_path / "runs.sqlite") as book:
        (run,) = book.runs()
    assert (run.record.kind, run.record.method, run.standing) == ("sweep", "basic", "finished")
    assert run.record.numbers == {"points": 3, "prompts": 4}
