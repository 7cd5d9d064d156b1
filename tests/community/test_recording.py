"""A run is recorded however it ends, and a book that cannot be written loses no run."""

import sqlite3
from pathlib import Path

import pytest

from obliteratus.community.book import Run, RunBook
from obliteratus.community.recording import Entry, recording
from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import Event, Note, listening
from obliteratus.pipeline.methods import settings_for


def entry(**more: object) -> Entry:
    return Entry("obliterate", "m", settings_for("advanced"), "advanced", **more)  # type: ignore[arg-type]


def the_run(path: Path) -> Run:
    with RunBook(path) as book:
        (run,) = book.runs()
        return run


def test_a_finished_run_has_its_report_its_stages_and_its_folder(
    path: Path, reported, tmp_path: Path
) -> None:
    report = reported(prompts=8)
    seconds: dict[str, float] = {}
    with recording(entry(folder=tmp_path / "out", seconds=seconds)) as one:
        seconds["probe"] = 1.5
        one.report = report
    run = the_run(path)
    assert run.standing == "finished"
    assert run.local.folder == str(tmp_path / "out")
    assert run.record.seconds["probe"] == 1.5
    assert run.record.results is not None
    assert run.record.results.metric("kl_first") is not None
    assert run.record.hardware.device == "cpu"
    assert run.record.versions["torch"]


def test_a_failed_run_has_the_class_and_the_sentence_of_its_error(path: Path) -> None:
    with pytest.raises(MeasurementError), recording(entry()):
        raise MeasurementError("the logits of /home/ada/x are NaN")
    run = the_run(path)
    assert (run.standing, run.record.error) == ("failed", "MeasurementError")
    assert run.local.sentence == "the logits of /home/ada/x are NaN"
    assert "ada" not in run.record.model_dump_json()


def test_an_interrupted_run_is_said_to_be_interrupted(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), recording(entry()):
        raise KeyboardInterrupt
    assert the_run(path).standing == "interrupted"


def test_a_wrong_request_is_no_run(path: Path) -> None:
    with pytest.raises(UsageError), recording(entry()):
        raise UsageError("no model called 'x'.")
    with RunBook(path) as book:
        assert book.runs() == ()


def test_of_several_processes_the_first_one_records(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "a test", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for number in ("1", "0"):
        monkeypatch.setenv("RANK", number)
        with recording(entry(folder=path.with_name(number))):
            pass
    assert the_run(path).local.folder == str(path.with_name("0"))


def test_a_part_of_a_run_is_no_run_of_its_own(path: Path) -> None:
    with recording(entry()), recording(entry()):
        pass
    assert the_run(path).standing == "finished"
    with recording(entry()):  # and afterwards runs are recorded again
        pass
    with RunBook(path) as book:
        assert len(book.runs()) == 2


def test_credentials_are_taken_out_of_what_an_error_says(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct horse battery")
    said = "401 for https://ada:hunter22@host/v1 with correct horse battery, hf_" + "x" * 30
    with pytest.raises(MeasurementError), recording(entry()):
        raise MeasurementError(said)
    sentence = the_run(path).local.sentence or ""
    assert "401 for https://[credentials]@host/v1 with [credentials], [credentials]" in sentence
    assert not {"hunter22", "horse", "xxxx"} & set(sentence.split())


@pytest.fixture
def notes() -> list[str]:
    return []


def run_with_notes(notes: list[str]) -> str:
    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    with listening(hear), recording(entry()):
        return "finished"


def test_a_book_of_a_newer_program_loses_no_run(path: Path, notes: list[str]) -> None:
    RunBook(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    assert run_with_notes(notes) == "finished"
    (note,) = notes
    assert "this run is not recorded: " in note
    assert "version 99" in note
    assert "OBLITERATUS_RUNS=off" in note


def test_a_book_that_cannot_be_made_loses_no_run(path: Path, notes: list[str]) -> None:
    path.parent.write_text("a file where the folder should be")
    assert run_with_notes(notes) == "finished"
    assert len(notes) == 1
    assert "cannot write" in notes[0]


def test_a_disk_that_fills_up_during_the_run_loses_no_run(
    path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    real = sqlite3.Cursor

    class Full(real):  # type: ignore[valid-type, misc]
        def execute(self, sql: str, *rest: object):  # type: ignore[no-untyped-def]
            if sql.startswith("UPDATE run"):
                full()
            return super().execute(sql, *rest)

    class Connection(sqlite3.Connection):
        def cursor(self, factory=Full):  # type: ignore[no-untyped-def]
            return super().cursor(factory)

    connect = sqlite3.connect
    monkeypatch.setattr("sqlite3.connect", lambda *a, **k: connect(*a, factory=Connection, **k))
    assert run_with_notes(notes) == "finished"
    assert len(notes) == 1
    assert "is full. The result of the run is not touched by this" in notes[0]


def test_switched_off_nothing_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    monkeypatch.setenv("OBLITERATUS_RUNS", "off")
    assert run_with_notes(notes) == "finished"
    assert notes == []
    assert not path.exists()
