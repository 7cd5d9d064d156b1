"""What people and machines see of a run."""

import io
import json

import pytest
from rich.console import Console

from obliteratus.amounts import count, duration, rate, share_done, size
from obliteratus.cli.errors import InterruptedRunError, OutputClosedError
from obliteratus.cli.live import LiveScreen
from obliteratus.cli.render import rendering
from obliteratus.cli.results import next_steps
from obliteratus.errors import EditError
from obliteratus.events import (
    STAGES,
    Deviation,
    DeviationRecorded,
    Note,
    Progress,
    StageFinished,
    StageStarted,
    emit,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")

    def enter():  # in the test itself: pytest puts its own stream back after the set-up
        monkeypatch.setattr("sys.stdout", Terminal())

    return enter


def a_run():
    """Emit the events of a run; VERIFY comes before EXCISE and again at the end."""
    emit(StageStarted("summon", "load tiny"))
    emit(Note("the files are cached."))
    emit(StageFinished("summon", 1.2, "llama, 3 blocks"))
    emit(StageStarted("probe", "read 20 prompts"))
    for done in range(1, 21):
        emit(Progress("probe", done, 20, "prompts", elapsed=done * 2.0))
    emit(StageFinished("probe", 0.2, "20 prompts", cached=True, saved=39.8))
    emit(StageStarted("verify", "measure the original"))
    emit(StageFinished("verify", 3.0, "the original is measured"))
    emit(DeviationRecorded(Deviation("excise", "norm=column", "norm=none", "post-norm")))
    emit(StageStarted("excise", "edit 7 matrices"))
    emit(StageFinished("excise", 0.5, "7 matrices"))
    emit(StageStarted("verify", "measure the saved folder"))
    emit(StageFinished("verify", 4.0, "compared"))


def drawn(screen, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(screen)
    return console.file.getvalue()


def test_a_line_that_says_the_same_again_comes_once_a_minute(capsys):
    with rendering():
        emit(StageStarted("study", "2 units"))
        for seconds in range(0, 200, 5):
            emit(Progress("study", int(seconds >= 150), 2, "units", elapsed=float(seconds)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "/2 units" in line]
    assert [line for line in lines if "0/2" in line] == [lines[0]] * 3  # at 10, 70 and 130 s
    assert len([line for line in lines if "1/2" in line]) == 1


def test_plain_lines_show_each_stage_note_and_deviation_once(capsys):
    with rendering() as screen:
        screen.title("tiny")
        a_run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "tiny",
        "SUMMON    load tiny",
        "note      the files are cached.",
        "SUMMON    done in 1.2 s: llama, 3 blocks",
    ]
    assert "PROBE     found in the cache, which saved 40 s: 20 prompts" in lines
    assert "deviation excise: asked for norm=column, did norm=none, because post-norm" in lines
    assert [line for line in lines if line.startswith("VERIFY")] == [
        "VERIFY    measure the original",
        "VERIFY    done in 3.0 s: the original is measured",
        "VERIFY    measure the saved folder",
        "VERIFY    done in 4.0 s: compared",
    ]


def test_plain_progress_is_sparse_and_has_no_control_codes(capsys):
    with rendering():
        a_run()
    out = capsys.readouterr().out
    progress = [line for line in out.splitlines() if "prompts," in line]
    assert progress == [
        "PROBE     probe: 5/20 prompts, 0.500/s, 30 s left",
        "PROBE     probe: 10/20 prompts, 0.500/s, 20 s left",
        "PROBE     probe: 15/20 prompts, 0.500/s, 10 s left",
    ]
    assert "\x1b" not in out


def test_json_is_one_object_a_line_with_the_result_last(capsys):
    with rendering(as_json=True) as screen:
        screen.title("not for machines")
        a_run()
        screen.say("nor this")
        screen.result("obliterate", {"folder": "out"})
    out = capsys.readouterr().out
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events[:3]] == ["stage_started", "note", "stage_finished"]
    assert events[-1] == {"event": "result", "command": "obliterate", "folder": "out"}
    assert {
        "where": "excise",
        "asked": "norm=column",
        "done": "norm=none",
        "reason": "post-norm",
    } in [event.get("deviation") for event in events]


def test_json_keeps_what_libraries_print_off_standard_output(capsys):
    with rendering(as_json=True):
        print("chatter")  # noqa: T201 - the claim is about print
        emit(Note("ours"))
    captured = capsys.readouterr()
    assert [json.loads(line)["text"] for line in captured.out.splitlines()] == ["ours"]
    assert captured.err == "chatter\n"


def test_json_thins_progress_but_keeps_the_last_of_a_task(capsys):
    with rendering(as_json=True):
        for done in range(1, 1001):
            emit(Progress("probe", done, 1000, "prompts", elapsed=1.0, time=done * 1e-4))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["done"] == 1000
    assert len(events) < 5


def test_json_ends_with_the_error(capsys):
    with pytest.raises(EditError), rendering(as_json=True):
        raise EditError("no.")
    assert json.loads(capsys.readouterr().out) == {
        "event": "error",
        "error": "EditError",
        "message": "no.",
        "exit_code": 1,
    }


def test_quiet_prints_the_path_and_nothing_else(capsys):
    with rendering(quiet=True) as screen:
        screen.title("tiny")
        a_run()
        screen.say("a table")
        screen.path("out/tiny")
    assert capsys.readouterr().out == "out/tiny\n"


def interrupted_in(stage, *, resumes):
    with rendering(resumes=resumes):
        for each in STAGES[: STAGES.index(stage)]:
            emit(StageStarted(each, ""))
            emit(StageFinished(each, 1.0))
        emit(StageStarted(stage, ""))
        raise KeyboardInterrupt


def interrupt_at_once():
    with rendering(resumes=True):
        raise KeyboardInterrupt


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_names_the_stage_and_says_how_to_go_on(stage, capsys):
    match = f"^Stopped during {stage.upper()}; finished stages are cached, run the same command"
    with pytest.raises(InterruptedRunError, match=match):
        interrupted_in(stage, resumes=True)
    with pytest.raises(InterruptedRunError, match=r"; nothing was written\.$"):
        interrupted_in(stage, resumes=False)


def test_ctrl_c_before_the_first_stage_has_nothing_to_go_on_from(capsys):
    with pytest.raises(InterruptedRunError, match=r"^Stopped before the first stage; nothing"):
        interrupt_at_once()


class Closed(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError


def say_hello(**options):
    with rendering(**options) as screen:
        emit(Note("hello"))
        screen.path("out")


@pytest.mark.parametrize("options", [{}, {"as_json": True}, {"quiet": True}])
def test_a_reader_that_goes_away_is_noticed(options, monkeypatch):
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(OutputClosedError):
        say_hello(**options)


def test_a_terminal_lists_all_six_stages_from_the_start(terminal):
    terminal()
    with rendering() as screen:
        assert isinstance(screen, LiveScreen)
        emit(StageStarted("summon", "load tiny"))
        text = drawn(screen)
    assert [line.split()[1] for line in text.split("\n") if line.strip()] == [
        stage.upper() for stage in STAGES
    ]


def test_a_stage_that_ran_early_is_not_called_finished(terminal):
    terminal()
    with rendering() as screen:
        emit(StageStarted("verify", "measure the original"))
        emit(StageFinished("verify", 3.0, "the original is measured"))
        assert screen.rows["verify"].status == "partial"
        for stage in STAGES:
            emit(StageStarted(stage, ""))
            emit(StageFinished(stage, 4.0))
        assert screen.rows["verify"].status == "done"
        assert screen.rows["verify"].seconds == 7.0


def test_the_running_task_shows_rate_and_time_left_at_any_width(terminal):
    terminal()
    with rendering() as screen:
        emit(StageStarted("probe", "read 1000 prompts at every one of the thirty layers"))
        emit(Progress("probe the harmful prompts", 250, 1000, "prompts", elapsed=10.0))
        wide, narrow = drawn(screen, 100), drawn(screen, 60)
    assert "250/1000 prompts  25.0/s  30 s left" in wide
    assert "250/1000 prompts  30 s left" in narrow
    assert "25.0/s" not in narrow
    assert max(len(line) for line in narrow.split("\n")) <= 60


def test_a_failed_stage_is_marked(terminal):
    terminal()
    screens = []

    def fail():
        with rendering() as screen:
            screens.append(screen)
            emit(StageStarted("excise", "edit"))
            raise EditError("no.")

    with pytest.raises(EditError):
        fail()
    assert screens[0].rows["excise"].status == "failed"


def test_brackets_in_texts_are_not_taken_for_markup(terminal):
    terminal()
    with rendering() as screen:
        emit(StageStarted("excise", "edit [red]7[/red] matrices [a, b]"))
        assert "edit [red]7[/red] matrices [a, b]" in drawn(screen)
        emit(Note("interval [0.1, 0.2] [/nothing]"))


def test_numbers_read_well():
    assert [duration(s) for s in (0.44, 9.96, 59.6, 125.0, 3800.0, float("inf"))] == [
        "0.4 s", "10 s", "1 min 00 s", "2 min 05 s", "1 h 03 min", "?",
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1000, 538_000_000, 1_250_000_000)] == [
        "0 B", "999 B", "1.0 kB", "538 MB", "1.2 GB",
    ]  # fmt: skip
    assert count(9999) == "9999"
    assert count(134515008) == "134,515,008"
    assert share_done(3, 10, "prompts") == "3/10 prompts"
    assert share_done(int(1.2e9), int(4e9), "bytes") == "1.2 GB/4.0 GB"
    assert rate(31e6, "bytes") == "31.0 MB/s"


def test_next_steps_quote_folders_with_spaces(tmp_path):
    text = drawn(next_steps(tmp_path / "my model"), 200)
    assert f"obliteratus chat '{tmp_path}/my model'" in text
