"""The main job through the command line, on a tiny model that refuses."""

import contextlib
import errno
import io
import json
import re
import shutil
import signal
from dataclasses import dataclass

import pytest
from safetensors import SafetensorError

from obliteratus.cli.main import main
from obliteratus.events import STAGES

INTERRUPTS = [(stage, 1) for stage in STAGES] + [("verify", 3)]
"""A stage and which of its starts: VERIFY measures original, controls and then what was saved."""
RUST = "I/O error: No space left on device (os error 28)"  # as safetensors and tokenizers say it
RECORDS = ("directions.safetensors", "plan.json", "receipt.json", "report.json", "run.json")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for this file: what an interrupted run finished is not done again."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shared(place, cache, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_CACHE", str(cache))
    place.cache = cache
    return place


@dataclass
class Stream:
    """Standard output that calls ``then`` at the ``nth`` announcement of ``stage``."""

    stage: str
    nth: int
    then: object

    def write(self, text):
        if '"event": "stage_started"' in text and f'"stage": "{self.stage}"' in text:
            self.nth -= 1
            if self.nth == 0:
                self.then()

    def flush(self):
        pass

    def isatty(self):
        return False


def press_ctrl_c():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("stage", "nth"), INTERRUPTS)
def test_ctrl_c_loses_nothing_at_any_stage(stage, nth, shared, quick, monkeypatch):
    monkeypatch.setattr("sys.stdout", Stream(stage, nth, press_ctrl_c))
    outcome = shared.run("obliterate", *quick, "-o", "new/edited", "--json")
    assert outcome.err == (
        f"error: Stopped during {stage.upper()}; finished stages are cached, run the same command "
        "again to go on.\n"
    )
    assert outcome.code == 1
    assert shared.is_unchanged()


@pytest.fixture(scope="module")
def finished(quick, cache, tmp_path_factory):
    """The folder of a finished run, which was a quiet one."""
    output = tmp_path_factory.mktemp("out") / "edited"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("OBLITERATUS_CACHE", str(cache))
        assert main(["obliterate", *quick, "-o", str(output), "--quiet"]) == 0
    assert printed.getvalue() == f"{output}\n"
    return output


def test_a_run_is_repeated_from_its_record_byte_for_byte(finished, shared):
    outcome = shared.run(
        "obliterate", "--from", str(finished / "obliteratus" / "run.json"), "-o", "again", "--json"
    )
    assert outcome.code == 0
    events = [json.loads(line) for line in outcome.out.splitlines()]
    started = [event["stage"] for event in events if event["event"] == "stage_started"]
    assert list(dict.fromkeys(started)) == ["summon", "probe", "distill", "verify", *STAGES[3:5]]
    assert started[-1] == "verify"
    assert events[-1]["event"] == "result"
    assert events[-1]["folder"] == "again"
    assert events[-1]["report"]["rows"]
    for path in finished.rglob("*.safetensors"):
        again = shared.work / "again" / path.relative_to(finished)
        assert again.read_bytes() == path.read_bytes(), path.name


def test_a_record_does_not_fit_another_model(finished, shared, tiny):
    record = str(finished / "obliteratus" / "run.json")
    outcome = shared.run("obliterate", tiny, "--from", record, "-o", "other")
    assert outcome.code == 1
    assert "is not the model of the recorded run" in outcome.err
    assert shared.is_unchanged()


def test_the_last_screen_says_what_to_do_next(finished, shared, quick):
    shutil.copytree(finished, shared.work / "my model")
    outcome = shared.run("obliterate", *quick, "-o", "my model", "--force")
    assert outcome.code == 0
    assert "refuses harmful requests" in outcome.out
    assert "obliteratus chat 'my model'" in outcome.out
    assert "open 'my model/obliteratus/report.html'" in outcome.out
    assert "obliteratus obliterate --from 'my model/obliteratus/run.json'" in outcome.out
    assert outcome.err == ""
    for name in RECORDS:
        assert (shared.work / "my model" / "obliteratus" / name).is_file()


def test_force_replaces_nothing_but_an_earlier_run(shared, quick):
    (shared.work / "thesis").mkdir()
    (shared.work / "thesis" / "chapter1.txt").write_text("years of work")
    outcome = shared.run("obliterate", *quick, "-o", "thesis", "--force")
    assert outcome.code == 2
    assert "thesis was not written by an earlier run, and --force replaces only" in outcome.err
    assert shared.is_unchanged()


def full(exception):
    def write(*_arguments, **_options):
        raise exception

    return write


FULL = {
    "the weights": ("safetensors.torch.serialize_file", SafetensorError(RUST)),
    "the tokenizer": ("transformers.PreTrainedTokenizerFast.save_pretrained", Exception(RUST)),
    "the records": ("pathlib.Path.write_text", OSError(errno.ENOSPC, "No space left on device")),
    "a new folder": ("pathlib.Path.mkdir", OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize(("function", "exception"), FULL.values(), ids=FULL)
def test_a_full_disk_leaves_nothing_half_written(
    function, exception, finished, shared, quick, monkeypatch
):
    assert finished.is_dir()  # every stage before REBIRTH is in the cache: the cache is not full
    monkeypatch.setattr(function, full(exception))
    outcome = shared.run("obliterate", *quick, "-o", "new/edited")
    assert outcome.code == 1, outcome.err
    assert re.search(r"the disk that holds new/edited is full \([\d.]+ GB free\)", outcome.err)
    assert outcome.is_one_paragraph()
    assert shared.is_unchanged()


def test_a_full_cache_says_how_to_move_it(place, quick, monkeypatch):
    monkeypatch.setattr("safetensors.torch.serialize_file", full(SafetensorError(RUST)))
    outcome = place.run("obliterate", *quick)
    assert outcome.code == 1, outcome.err
    assert re.search(r"the disk that holds .*cache.* is full .*OBLITERATUS_CACHE", outcome.err)
    assert outcome.is_one_paragraph()
    assert place.is_unchanged()


def test_verify_measures_two_models_and_writes_the_report(finished, shared, quick):
    (shared.work / "report").mkdir()
    (shared.work / "report" / "notes.txt").write_text("mine")
    original, *prompts = quick[:3]
    flags = [*prompts, *(flag for flag in quick if "verify." in flag)]
    outcome = shared.run("verify", original, str(finished), *flags, "-o", "report", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out.splitlines()[-1])
    written = json.loads((shared.work / "report" / "report.json").read_text())
    assert result["report"] == written
    run = json.loads((finished / "obliteratus" / "report.json").read_text())
    for measured, before in zip(written["rows"], run["rows"], strict=True):
        assert measured["edited"] == before["edited"], measured["key"]
    nulls = [row for row in run["controls"] if row["kind"] != "permuted"]
    assert written["controls"] == nulls
    assert {row["kind"] for row in nulls} == {"edit", "random", "identity"}
    assert "permuted labels" in [each["asked"] for each in written["deviations"]]
    assert sorted(path.name for path in (shared.work / "report").iterdir()) == [
        "notes.txt",
        "report.html",
        "report.json",
    ]


def test_a_plan_for_another_original_gives_no_controls(finished, shared, quick):
    flags = [*quick[1:3], *(flag for flag in quick if "verify." in flag)]
    outcome = shared.run("verify", str(finished), str(finished), *flags, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out.splitlines()[-1])["report"]
    assert report["controls"] == []
    (found,) = [each for each in report["deviations"] if each["where"] == "controls"]
    assert "was made for another model" in found["reason"]


TASKS = ("tiny_sums", "multiple_choice")


def test_capability_is_measured_and_printed_as_nothing_but_its_rows(
    finished, shared, quick, task_files, tmp_path
):
    original, *prompts = quick[:3]
    flags = [*prompts, *(flag for flag in quick if "verify." in flag)]
    flags += ["--capability", ",".join(TASKS), "--set", "verify.capability_items=5"]
    flags += ["--set", f"verify.capability_files={task_files}", "-o", str(tmp_path / "report")]
    outcome = shared.run("verify", original, str(finished), *flags, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    events = [json.loads(line) for line in outcome.out.splitlines()]
    report = events[-1]["report"]
    assert [(each["task"], each["items"]) for each in report["capability"]] == [
        ("tiny_sums", 5),
        ("multiple_choice", 5),
    ]
    rows = {row["key"]: row for row in report["rows"]}
    assert rows["capability_tiny_sums"]["label"] == "tiny_sums, exact_match"
    assert rows["capability_multiple_choice"]["change"]["n"] == 5
    asked = {f"{role}: {task}" for role in ("original", "edited") for task in TASKS}
    shown = {event["task"] for event in events if event["event"] == "progress"}
    assert asked <= shown
    assert not any("Running" in task or "requests" in task for task in shown)  # lm-eval's own bars
    assert shared.is_unchanged()
