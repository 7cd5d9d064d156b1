"""Handing runs on from the command line: shown first, asked for, and never sent unasked."""

import io
import json
import sys
from pathlib import Path

import pytest

from local_hub import LocalHub
from obliteratus.cli import contributions
from obliteratus.cli.main import main
from obliteratus.cli.render import LineScreen
from obliteratus.community.book import RunBook
from obliteratus.community.recording import Entry
from obliteratus.events import Event, Note, listening
from obliteratus.pipeline.methods import settings_for
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.verify.compare import compare

# the Hub's client sends a file in a way that its own HTTP library has declared old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
DATA_SET = "lab/runs"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a finished run in a book of its own."""
    path = tmp_path / "runs.sqlite"
    monkeypatch.setenv("OBLITERATUS_RUNS", str(path))
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "cache"))
    original, edited, head = planted(Plant(prompts=16, layers=2, documents=6))
    report = compare(original, edited, edited_head=head)
    entry = Entry("obliterate", "/home/lovelace/base", settings_for("advanced"), "advanced")
    with RunBook(path) as book:
        identity = book.begin(entry.record(0.0), entry.local())
        entry.report = report
        book.end(identity, "finished", entry.record(2.0), entry.local())
    return identity


@pytest.fixture
def hub(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    local_hub.repo(DATA_SET, "dataset", private=False)
    monkeypatch.setenv("OBLITERATUS_DATA_SET", DATA_SET)
    return local_hub


def pulls(hub: LocalHub) -> list[dict]:
    return hub.repos["dataset", DATA_SET].pulls


def answered(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_exact_bytes_are_shown_and_written_and_nothing_is_sent(hub, run, tmp_path, capsys):
    file = tmp_path / "row.json"
    assert main(["community", "contribute", run[:6], "--to-file", str(file)]) == 0
    shown = capsys.readouterr().out
    data = file.read_text()
    assert data in shown
    assert "nothing was sent" in " ".join(shown.split())
    assert "lovelace" not in data
    assert hub.requests == []
    again = answered(capsys, "community", "contribute", run, "--to-file", str(tmp_path / "b.json"))
    assert list(again["content"].values()) == [data]


def test_nobody_is_asked_in_a_pipe_and_nothing_is_sent(hub, run, capsys) -> None:
    assert main(["community", "contribute", run]) == 2
    assert "nothing is sent without being asked. Pass --yes, or" in capsys.readouterr().err
    assert hub.requests == []


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """Let a person be there who types what is given."""

    def typing(text: str) -> None:
        monkeypatch.setattr(contributions, "can_ask", lambda _screen: True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    return typing


@pytest.mark.parametrize(("typed", "count"), [("y\n", 1), ("n\n", 0), ("\n", 0), ("", 0)])
def test_only_a_yes_sends(hub, run, terminal, capsys, typed, count) -> None:
    terminal(typed)
    assert main(["community", "contribute", run]) == 0
    out = capsys.readouterr().out
    assert (
        out.index('"sha256"') < out.index("It shows the name of the account") < out.index("[y, N]")
    )
    assert len(pulls(hub)) == count


def test_with_yes_it_is_sent_and_the_address_is_told(hub, run, capsys) -> None:
    found = answered(capsys, "community", "contribute", run, "--yes")
    assert found["is_new"]
    assert found["url"].endswith(f"{DATA_SET}/discussions/1")
    (pull,) = pulls(hub)
    assert {path: data.decode() for path, data in pull["files"].items()} == found["content"]
    assert not answered(capsys, "community", "contribute", run, "-y")["is_new"]


def offered(run: str | None) -> tuple[str, list[str]]:
    """Return what the end of a run says, and its notes."""
    stream, notes = io.StringIO(), []

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    with listening(hear):
        contributions.offer(LineScreen(stream), run)
    return stream.getvalue(), notes


def test_at_the_end_of_a_run_nothing_happens_unless_it_was_switched_on(hub, run, terminal) -> None:
    terminal("y\n")
    assert offered(run) == ("", [])
    assert hub.requests == []


def test_asking_wants_a_terminal(hub, run, monkeypatch, terminal) -> None:
    monkeypatch.setenv("OBLITERATUS_CONTRIBUTE", "ask")
    assert offered(run) == ("", [])
    terminal("n\n")
    said, _ = offered(run)
    assert f"Not sent. `obliteratus community contribute {run}` does it later" in said
    assert hub.requests == []
    terminal("show\ny\n")
    said, _ = offered(run)
    assert '"sha256"' in said
    assert len(pulls(hub)) == 1


def test_always_sends_and_never_fails_the_run(hub, run, monkeypatch) -> None:
    monkeypatch.setenv("OBLITERATUS_CONTRIBUTE", "always")
    hub.fail("/discussions", 403, times=1)
    said, (note,) = offered(run)
    assert said == ""
    assert note.startswith("this run was not contributed: your token may not open a pull request")
    said, notes = offered(run)
    assert f"Contributed: {hub.endpoint}" in said
    assert notes == []
    monkeypatch.delenv("OBLITERATUS_DATA_SET")
    _, (note,) = offered(run)
    assert "`always` needs to know where to: set OBLITERATUS_DATA_SET" in note
    assert offered(None) == ("", [])


def test_a_wrong_setting_is_a_note_at_the_end_of_a_run(run, monkeypatch) -> None:
    monkeypatch.setenv("OBLITERATUS_CONTRIBUTE", "maybe")
    _, (note,) = offered(run)
    assert "OBLITERATUS_CONTRIBUTE is 'maybe'" in note


def test_pulled_rows_are_asked_in_sql_and_stand_on_the_leaderboard(hub, run, capsys) -> None:
    sent = answered(capsys, "community", "contribute", run, "--yes")
    repo = hub.repos["dataset", DATA_SET]
    repo.files |= repo.pulls[0]["files"]
    assert main(["community", "leaderboard", "--community"]) == 2
    assert "`obliteratus community pull` does it" in capsys.readouterr().err
    found = answered(capsys, "community", "pull", "--sql", "SELECT sha256, method FROM runs")
    assert found["answer"] == [[sent["sha256"], "advanced"]]
    assert found["rows"] == 1
    assert found["refused"] == []
    (board,) = answered(capsys, "community", "leaderboard", "--community")["boards"]
    assert [(row["is_received"], row["times"]) for row in board["rows"]] == [(False, 2)]
    assert answered(capsys, "runs", "delete", run)["id"] == run
    assert main(["community", "leaderboard", "--community"]) == 0
    out = capsys.readouterr().out
    assert "received" in out
    assert "nobody has verified here" in out
    assert main(["community", "universality"]) == 2
    assert "shares its directions" in capsys.readouterr().err


def test_a_dry_push_lists_and_sends_nothing_and_public_is_asked_for(
    local_hub, tmp_path, capsys, terminal
) -> None:
    folder = tmp_path / "model"
    (folder / "obliteratus").mkdir(parents=True)
    (folder / "README.md").write_text("# M\n")
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (folder / "notes.txt").write_text("x")
    assert main(["release", "push", str(folder), "ada/model", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out
    assert "notes.txt" in out
    assert "Nothing was sent" in out
    assert local_hub.requests == []
    assert main(["release", "push", str(folder), "ada/model", "--public"]) == 2
    assert "nothing is made public without being asked" in capsys.readouterr().err
    terminal("no\n")
    assert main(["release", "push", str(folder), "ada/model", "--public"]) == 2
    assert local_hub.requests == []
    terminal("yes\n")
    assert main(["release", "push", str(folder), "ada/model", "--public"]) == 0
    assert not local_hub.repos["model", "ada/model"].private
    found = answered(capsys, "release", "push", str(folder), "ada/other")
    assert found["private"]
    assert [each["path"] for each in found["files"]] == ["README.md", "model.safetensors"]
    assert list(found["left_out"]) == ["notes.txt"]
