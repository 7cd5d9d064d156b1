"""A command on another machine gives what it gives here, whatever happens to the link."""

import json
import threading
import time
from pathlib import Path

import duckdb
import pytest

from obliteratus.cli.main import main
from obliteratus.testing.tiny import tiny_folder

QUICK = (
    "distill.select_prompts=8",
    "distill.max_kl=5",
    "distill.max_depth=1",
    "verify.max_new_tokens=28",
    "verify.sequence_prompts=4",
    "verify.sequence_tokens=8",
    "verify.random_controls=1",
    "verify.over_refusal=4",
    "verify.dose=false",
    "verify.coherence=false",
)
CUTS = 4
SETTINGS = [word for value in QUICK for word in ("--set", value)]


def remote(server, *words, port=None, before=()):
    address = f"127.0.0.1:{port or server.port}"
    return main(["--remote", address, "--remote-dir", str(server.root), *before, *words])


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_its_screen_is_shown_as_if_it_ran_here(installed, capsys, tmp_path):
    model = str(tiny_folder(tmp_path / "my-model", "llama"))
    assert main(["inspect", model]) == 0
    here = capsys.readouterr().out
    assert remote(installed, "inspect", model) == 0
    there = capsys.readouterr().out
    assert here.rstrip().splitlines()[-6:] == there.rstrip().splitlines()[-6:]


def test_a_folder_is_sent_and_the_output_arrives(installed, capsys, tmp_path):
    model = tiny_folder(tmp_path / "my-model", "llama")
    assert remote(installed, "inspect", str(model), "-o", "seen/it") == 0
    assert json.loads(Path("seen/it/anatomy.json").read_text())
    assert not list(installed.root.glob("jobs/*"))
    assert not list(Path().glob(".obliteratus-*"))
    sent = list(installed.root.glob("inputs/*/my-model/config.json"))
    assert len(sent) == 1


def test_an_error_there_is_the_error_here(installed, capsys):
    assert remote(installed, "obliterate", "no-such-model-anywhere", "--set", "seed=1") in (1, 2)
    assert "no-such-model-anywhere" in capsys.readouterr().err


def test_what_is_typed_wrong_is_refused_before_anything_is_sent(capsys):
    assert main(["--remote", "nobody.invalid", "inspect", "x", "--colour"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_what_is_here_already_is_not_replaced(installed, capsys):
    Path("seen").mkdir()
    assert remote(installed, "inspect", "smollm2-135m", "-o", "seen") == 1
    assert "already exists" in capsys.readouterr().err


def test_a_cut_link_loses_and_repeats_nothing(installed, wire, refuser, capsys):
    prompts = [f"--{name}={refuser / name}.jsonl" for name in ("harmful", "harmless")]
    words = ["obliterate", str(refuser), *prompts, "--method", "basic", *SETTINGS, "--json"]
    done = threading.Event()

    def saw() -> None:
        while not done.wait(2.0) and wire.cuts < CUTS:
            if any(installed.root.glob("jobs/*/events.jsonl")):
                wire.cut(1.0)

    saw_thread = threading.Thread(target=saw, daemon=True)
    saw_thread.start()
    code = remote(installed, *words, "-o", "edited", port=wire.port)
    done.set()
    saw_thread.join()
    heard = lines(capsys)
    assert code == 0, heard[-1]
    assert wire.cuts >= 2
    assert any("is cut" in line.get("text", "") for line in heard if line["event"] == "note")
    begun = [line["stage"] for line in heard if line["event"] == "stage_started"]
    assert heard[-1]["event"] == "result"
    assert heard[-1]["folder"] == "edited"

    assert main([*words, "-o", "alone"]) == 0
    alone = lines(capsys)
    assert begun == [line["stage"] for line in alone if line["event"] == "stage_started"]
    there, here = Path("edited"), Path("alone")
    weights = "model.safetensors"
    assert (there / weights).read_bytes() == (here / weights).read_bytes()
    names = {str(path.relative_to(there)) for path in there.rglob("*")}
    assert names == {str(path.relative_to(here)) for path in here.rglob("*")}


def test_a_detached_job_is_attached_later(installed, capsys, tmp_path):
    model = tiny_folder(tmp_path / "my-model", "llama")
    words = ["inspect", str(model), "-o", "seen", "--json"]
    assert remote(installed, *words, before=["--detach"]) == 0
    name = lines(capsys)[-1]["job"]
    assert main(["remote", "list"]) == 0
    assert name in capsys.readouterr().out
    assert not Path("seen").exists()
    assert main(["remote", "attach", name]) == 0
    assert Path("seen/anatomy.json").exists()
    assert main(["remote", "attach", name]) == 2
    assert "no job called" in capsys.readouterr().err


def test_a_cancelled_job_ends_there(installed, capsys, tmp_path):
    import psutil

    model = tiny_folder(tmp_path / "my-model", "llama")
    words = ["obliterate", str(model), "-o", "edited", *SETTINGS, "-q"]
    assert remote(installed, *words, before=["--detach"]) == 0
    name = capsys.readouterr().out.strip()
    known = installed.root / "jobs" / name / "pid.json"
    pid = json.loads(known.read_text())["child"]["pid"]
    assert psutil.pid_exists(pid)
    assert main(["remote", "cancel", name]) == 0
    assert not psutil.pid_exists(pid)
    assert not known.exists()
    assert main(["remote", "list"]) == 0
    assert "No job" in capsys.readouterr().out


def test_a_job_that_is_killed_there_says_so(installed, capsys, tmp_path):
    import psutil

    model = tiny_folder(tmp_path / "my-model", "llama")
    words = ["obliterate", str(model), "-o", "edited", *SETTINGS, "-q"]
    assert remote(installed, *words, before=["--detach"]) == 0
    name = capsys.readouterr().out.strip()
    known = json.loads((installed.root / "jobs" / name / "pid.json").read_text())
    psutil.Process(known["child"]["pid"]).kill()
    assert main(["remote", "attach", name]) == 1
    assert "by signal 9" in capsys.readouterr().err


def test_a_machine_that_restarted_is_noticed(installed, capsys, tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr("obliteratus.remote.follow.SILENCE", 0.5)
    model = tiny_folder(tmp_path / "my-model", "llama")
    words = ["obliterate", str(model), "-o", "edited", *SETTINGS, "-q"]
    assert remote(installed, *words, before=["--detach"]) == 0
    name = capsys.readouterr().out.strip()
    known = json.loads((installed.root / "jobs" / name / "pid.json").read_text())
    for pid in (known["pid"], known["child"]["pid"]):
        psutil.Process(pid).kill()
    time.sleep(0.5)
    assert main(["remote", "attach", name]) == 1
    assert "ended without an exit code" in capsys.readouterr().err


def test_detach_without_remote_is_refused(capsys):
    assert main(["--detach", "methods"]) == 2
    assert "--detach goes with --remote" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["chat", "x"], ["remote", "list"], ["methods"]])
def test_what_runs_where_you_sit_is_refused(installed, capsys, words):
    assert remote(installed, *words) == 2


MINE = """\
name: mine
ablations: [{part: layer, by: zero}]
metrics: [kl_first]
prompts: 4
"""


def test_a_study_is_sent_and_its_results_arrive(installed, capsys, tmp_path):
    model = tiny_folder(tmp_path / "my-model", "llama")
    Path("mine.yaml").write_text(MINE)
    words = ["study", "run", "mine.yaml", str(model), "--json"]
    assert remote(installed, *words, "-o", "there") == 0
    heard = lines(capsys)
    assert heard[-1]["folder"] == "there"
    assert heard[-1]["units"]["finished"] > 1
    assert heard[-1]["units"]["failed"] == 0
    assert list(installed.root.glob("inputs/*/mine.yaml"))
    assert main([*words, "-o", "here"]) == 0

    def found(folder):
        query = f"SELECT name, value, value_low, original FROM '{folder}/results.parquet'"
        return {row[0]: row[1:] for row in duckdb.sql(query).fetchall()}

    assert found("there") == found("here")
    assert len(set(found("there").values())) == len(found("there"))  # units are told apart
    capsys.readouterr()
    assert main(["study", "show", "there"]) == 0
    assert "mine" in capsys.readouterr().out


def test_a_unit_that_fails_there_is_an_error_here_and_its_ledger_arrives(installed, capsys):
    Path("mine.yaml").write_text(MINE.replace("kl_first", "no_such_metric"))
    assert remote(installed, "study", "run", "mine.yaml", "smollm2-135m", "-o", "there") != 0
    assert "no_such_metric" in capsys.readouterr().err
    assert not Path("there").exists()
