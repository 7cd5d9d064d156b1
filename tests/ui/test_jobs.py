"""Jobs of the page: in order, one for each model, stoppable, and found again after a restart."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from obliteratus.errors import UsageError
from obliteratus.remote import agent
from obliteratus.ui.facts import Reader
from obliteratus.ui.jobs import ENDED, Job, Jobs, Order
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.record import Record
from obliteratus.ui.talks import Talks

BEGAN = '{"event": "note", "text": "began"}'
SLOW = f"import time; print({BEGAN!r}, flush=True); time.sleep(600)"
QUICK = 'print(\'{"event": "result", "command": "x", "value": 3}\')'
WRONG = 'import sys; print(\'{"event": "error", "message": "no such model"}\'); sys.exit(2)'
SILENT = "import sys; sys.stderr.write('error: it broke\\n'); sys.exit(1)"


def order(script: str, model: str = "m", title: str = "run") -> Order:
    return Order("obliterate", title, model, (script,), Path("out"))


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Jobs whose agent runs the script that is their only word."""
    runner = tmp_path / "runner.py"
    text = Path(agent.__file__).read_text(encoding="utf-8")
    text = text.replace('"-m", "obliteratus.cli.main"', '"-c"')
    runner.write_text(text.replace('"-m", "obliteratus.remote.agent"', f'"{runner}"'))
    namespace = {"__name__": "runner"}
    exec(compile(runner.read_text(), str(runner), "exec"), namespace)
    monkeypatch.setattr(agent, "spawn", namespace["spawn"])
    found = Jobs(tmp_path / "space", at_once=2)
    with found.open():
        yield found
        for job in found.all():
            found.cancel(job)
            until_over(found, job)


def until_over(jobs: Jobs, job: Job) -> None:
    deadline = time.monotonic() + 60
    while jobs.state(job) not in ENDED and time.monotonic() < deadline:
        time.sleep(0.05)


def until(jobs: Jobs, job: Job, *states: str) -> str:
    deadline = time.monotonic() + 300
    while (state := jobs.state(job)) not in states:
        assert time.monotonic() < deadline, f"{state}, not one of {states}"
        assert state not in ENDED, f"{state}, not one of {states}"
        time.sleep(0.05)
    return state


def test_two_orders_never_write_the_same_folder(jobs: Jobs) -> None:
    lab = Laboratory(jobs.folder.parent, jobs, Talks(), Reader())
    first = lab.room_for("run")
    jobs.submit(replace(order(SLOW), output=first))
    assert (first.name, lab.room_for("run").name) == ("run", "run-2")


def test_a_job_runs_and_gives_its_result(jobs: Jobs) -> None:
    job = jobs.submit(order(QUICK))
    until(jobs, job, "finished")
    assert jobs.view(job.id).record.result == {"command": "x", "value": 3}


def test_a_job_that_fails_says_why(jobs: Jobs) -> None:
    told, silent = jobs.submit(order(WRONG)), jobs.submit(order(SILENT, "n"))
    until(jobs, told, "failed"), until(jobs, silent, "failed")
    assert jobs.view(told.id).record.error == "no such model"
    assert jobs.view(silent.id).record.error == "it broke"


def test_two_of_a_model_never_run_at_once_and_others_do(jobs: Jobs) -> None:
    first, second, other = (jobs.submit(order(SLOW, model)) for model in ("m", "m", "n"))
    until(jobs, first, "running"), until(jobs, other, "running")
    time.sleep(1.0)
    assert jobs.view(second.id).position == 1
    jobs.cancel(first)
    assert until(jobs, first, "cancelled")
    until(jobs, second, "running")


def test_no_more_run_than_are_allowed(jobs: Jobs) -> None:
    several = [jobs.submit(order(SLOW, str(number))) for number in range(3)]
    until(jobs, several[0], "running"), until(jobs, several[1], "running")
    time.sleep(1.0)
    assert jobs.state(several[2]) == "queued"


def test_what_waits_can_be_cancelled_and_never_starts(jobs: Jobs) -> None:
    first, second = jobs.submit(order(SLOW)), jobs.submit(order(QUICK))
    until(jobs, first, "running")
    jobs.cancel(second)
    assert jobs.state(second) == "cancelled"
    jobs.cancel(first)
    until(jobs, first, "cancelled")
    time.sleep(1.0)
    assert not (jobs.folder / second.id / "started").exists()


def test_what_ended_stays_as_it_ended(jobs: Jobs) -> None:
    job = jobs.submit(order(QUICK))
    until(jobs, job, "finished")
    jobs.cancel(job)
    assert jobs.state(job) == "finished"


def test_a_job_can_be_forgotten_when_it_has_ended(jobs: Jobs) -> None:
    slow, quick = jobs.submit(order(SLOW)), jobs.submit(order(QUICK, "n"))
    until(jobs, slow, "running"), until(jobs, quick, "finished")
    with pytest.raises(UsageError, match="has not ended; cancel it first"):
        jobs.forget(slow)
    jobs.forget(quick)
    with pytest.raises(UsageError, match="there is no job"):
        jobs.find(quick.id)


def test_a_second_server_is_refused(jobs: Jobs) -> None:
    with (
        pytest.raises(UsageError, match=r"another `obliteratus ui` has .* open"),
        Jobs(jobs.folder.parent).open(),
    ):
        pass


@pytest.mark.parametrize("name", ["", "../../etc", "20260101-000000-abcdef"])
def test_a_name_from_outside_is_no_path(jobs: Jobs, name: str) -> None:
    with pytest.raises(UsageError, match="there is no job"):
        jobs.view(name)


def test_a_record_reads_whole_lines_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    lines = [
        {"event": "stage_started", "time": 10.0, "stage": "probe", "text": "read"},
        {"event": "progress", "time": 11.0, "task": "prompts", "done": 1, "total": 4,
         "unit": "prompts", "elapsed": 1.0},
        {"event": "stage_finished", "time": 12.0, "stage": "probe", "seconds": 2.0, "text": "ok"},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    cut = len(text) - 20
    file.write_text(text[:cut])
    half = Record().read_on(tmp_path)
    assert (half.count, half.stages[0].mark) == (2, "running")
    assert half.progress is not None
    assert half.progress.seconds_left == 3.0
    file.write_text(text)
    whole = half.read_on(tmp_path)
    assert (whole.count, whole.stages[0].mark, whole.stages[0].seconds) == (3, "done", 2.0)
    assert whole.progress is None
    assert whole.read_on(tmp_path) == whole


def test_a_stage_that_runs_twice_is_one_row_with_both_times() -> None:
    record = Record()
    for start in (10.0, 20.0):
        record = record.with_event(
            {"event": "stage_started", "time": start, "stage": "verify", "text": "measure"}
        ).with_event(
            {"event": "stage_finished", "time": start + 2, "stage": "verify", "seconds": 2.0}
        )
    assert [(row.stage, row.seconds) for row in record.stages] == [("verify", 4.0)]


def test_an_error_marks_the_stage_it_came_in() -> None:
    record = Record().with_event(
        {"event": "stage_started", "time": 1.0, "stage": "probe", "text": ""}
    )
    record = record.with_event({"event": "error", "message": "the disk is full"})
    assert (record.stages[0].mark, record.error) == ("failed", "the disk is full")
