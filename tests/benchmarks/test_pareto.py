"""A finished row is not run again, a row that fails is a row, and every name means a method."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import heretic
import pareto
import pytest
from fronts import runs
from fronts.rows import ROW_FILE, Row, load_row, load_rows, save_row
from fronts.runs import Place

from obliteratus.errors import MeasurementError
from obliteratus.pipeline.methods import methods

Make = Callable[..., Row]


def plan(root: Path, *assignments: str, fresh: bool = False) -> pareto.Plan:
    return pareto.Plan(root, assignments, heretic.Options(), fresh=fresh)


@pytest.fixture
def ran(make: Make, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the process by a row at once; the names that were run."""
    names: list[str] = []

    def at_once(place: Place, key: object, method: str, sets: Sequence[str], **_: object) -> Row:
        del method, sets
        names.append(place.name)
        place.folder.mkdir(parents=True, exist_ok=True)
        return make(place.name, key=key).model_copy(update={"model": place.model})

    monkeypatch.setattr(pareto, "obliterate", at_once)
    return names


def go(chosen: pareto.Plan, *names: str) -> None:
    for _ in pareto.run(chosen, ["m"], names):
        pareto.write(chosen)


def test_every_preset_every_norm_and_heretic_are_rows() -> None:
    names = pareto.names()
    assert {method.name for method in methods()} < set(names)
    assert {"norm-none", "norm-frobenius", "norm-column", "norm-row", "heretic"} < set(names)


def test_norm_rows_differ_in_the_norm_alone(tmp_path: Path) -> None:
    settings = [
        plan(tmp_path).settings("m", f"norm-{norm}").model_dump() for norm in ("none", "row")
    ]
    assert [each["edit"].pop("norm") for each in settings] == ["none", "row"]
    assert settings[0] == settings[1]


def test_a_finished_row_is_skipped(tmp_path: Path, ran: list[str]) -> None:
    go(plan(tmp_path), "basic")
    go(plan(tmp_path), "basic", "advanced")
    assert ran == ["basic", "advanced"]
    assert "| current |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "pareto.png").stat().st_size > 0
    assert (tmp_path / "pareto-sequence.svg").stat().st_size > 0


def test_a_row_of_the_same_settings_is_taken_over_and_says_so(
    tmp_path: Path, ran: list[str]
) -> None:
    """arditi keeps no norm: the row that says so is the same run."""
    go(plan(tmp_path), "arditi", "norm-none", "norm-row")
    assert ran == ["arditi", "norm-row"]
    rows = {row.name: row for row in load_rows(tmp_path)}
    assert rows["norm-none"].note == "the run of arditi"
    assert rows["norm-none"].measures == rows["arditi"].measures
    assert not rows["norm-row"].note


def test_a_row_that_is_shorter_than_its_preset_says_so(tmp_path: Path, ran: list[str]) -> None:
    go(plan(tmp_path), "cone", "rdo")
    notes = {row.name: row.note for row in load_rows(tmp_path)}
    assert notes == {"cone": "with distill.rdo.steps=10", "rdo": ""}
    assert plan(tmp_path).settings("m", "cone").distill.rdo.steps == 10
    assert plan(tmp_path, "distill.rdo.steps=3").settings("m", "cone").distill.rdo.steps == 3


def test_a_gate_is_wider_only_where_no_direction_passes_it_and_the_row_says_so(
    tmp_path: Path, ran: list[str]
) -> None:
    chosen = plan(tmp_path)
    for model in ("m", "smollm2-refuser"):
        for _ in pareto.run(chosen, [model], ["leace"]):
            pareto.write(chosen)
    notes = {row.model: row.note for row in load_rows(tmp_path)}
    assert notes == {"m": "", "smollm2-refuser": "with distill.max_kl=0.5"}
    gates = [chosen.settings(model, "leace").distill.max_kl for model in ("m", "smollm2-refuser")]
    assert gates == [0.1, 0.5]


def test_a_stale_row_is_named_and_run_again_only_when_asked(tmp_path: Path, ran: list[str]) -> None:
    go(plan(tmp_path), "basic")
    later = plan(tmp_path, "verify.prompts=16")
    go(later, "basic")
    pareto.write(later)
    assert "stale: other settings" in (tmp_path / "table.md").read_text()
    assert ran == ["basic"]
    go(plan(tmp_path, "verify.prompts=16", fresh=True), "basic")
    assert ran == ["basic", "basic"]
    go(plan(tmp_path, "verify.prompts=16", fresh=True), "basic")
    assert ran == ["basic", "basic"]


def fake_program(folder: Path, events: list[dict[str, object]], code: int) -> Path:
    folder.mkdir()
    lines = "\n".join(json.dumps(event) for event in events)
    (folder / "obliteratus").write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {code}\n")
    (folder / "obliteratus").chmod(0o755)
    return folder / "python"


def test_a_run_that_is_refused_gives_a_row_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [{"event": "progress"}, {"event": "error", "message": "KL 0.3 is beyond the gate."}]
    program = fake_program(tmp_path / "bin", events, 1)
    monkeypatch.setattr(runs.sys, "executable", str(program))
    chosen = plan(tmp_path / "out")
    go(chosen, "basic")
    row = load_row(chosen.root / "m" / "basic")
    assert row is not None
    assert row.error == "KL 0.3 is beyond the gate."
    assert "- basic: KL 0.3 is beyond the gate." in (chosen.root / "table.md").read_text()
    assert not (chosen.root / "pareto.png").exists()
    assert chosen.is_done("m", "basic")
    assert not plan(tmp_path / "out", fresh=True).is_done("m", "basic")


def test_a_row_that_was_stopped_says_so_and_one_that_is_made_again_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_program(tmp_path / "bin", [{"event": "error", "message": "no."}], 1)
    monkeypatch.setattr(runs.sys, "executable", str(program))
    chosen = plan(tmp_path / "out", fresh=True)
    folder = Place(chosen.root, "m", "basic").folder
    go(chosen, "basic")
    row = load_row(folder)
    assert row is not None
    assert row.note == ""
    go(chosen, "basic")
    row = load_row(folder)
    assert row is not None
    assert row.note == ""
    (folder / ROW_FILE).unlink()
    go(chosen, "basic")
    row = load_row(folder)
    assert row is not None
    assert row.note == runs.WENT_ON


def test_kernel_search_makes_as_many_trials_as_heretic_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    assert plan(tmp_path).settings("m", "kernel-search").distill.kernel.trials == 24
    told = plan(tmp_path, "distill.kernel.trials=7")
    assert told.settings("m", "kernel-search").distill.kernel.trials == 7
    assert plan(tmp_path).settings("m", "tuned").distill.kernel.trials == 0


def test_heretic_failing_is_a_row_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object) -> None:
        raise MeasurementError("heretic ended.")

    monkeypatch.setattr(heretic, "environment", lambda _folder: tmp_path)
    monkeypatch.setattr(heretic, "search", ends)
    go(plan(tmp_path), "heretic")
    row = load_row(tmp_path / "m" / "heretic")
    assert row is not None
    assert (row.tool, row.error) == ("heretic", "heretic ended.")


def test_more_trials_make_heretics_row_stale(tmp_path: Path, make: Make) -> None:
    few = plan(tmp_path)
    folder = Place(tmp_path, "m", "heretic").folder
    folder.mkdir(parents=True)
    key = few.key("m", "heretic")
    save_row(make("heretic", key=key), folder)
    more = pareto.Plan(tmp_path, (), heretic.Options(trials=200))
    row = load_row(folder)
    assert row is not None
    assert few.stale(row) == ""
    assert more.stale(row) == "stale: other settings"


def test_an_unknown_row_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pareto.main(["--methods", "norm-colum", "-o", str(tmp_path)]) == 2
    assert "no row called 'norm-colum'. Did you mean 'norm-column'?" in capsys.readouterr().err
