"""The program starts at once and imports what is heavy only when it is needed."""

import os
import subprocess
import sys

import pytest

import obliteratus
from obliteratus.cli.main import main

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "sklearn",
    "huggingface_hub",
    "datasets",
    "duckdb",
)
FASTEST = 0.5  # seconds of processor time, which does not depend on what else the machine does
COMMANDS = (
    *("obliterate", "verify", "harden", "export", "demo", "inspect", "analyze", "detect", "chat"),
    *("probe", "models", "methods", "behaviours", "study", "sweep", "benchmark", "runs"),
    *("community", "release", "doctor"),
)
ATTEMPTS = 5  # a busy machine shares its caches and its clock
CODE = """
import sys
from obliteratus.cli.main import main
code = main({arguments})
loaded = sorted(set({heavy}) & set(sys.modules))
sys.stderr.write(f"{{code}} {{loaded}}")
"""


def run_python(code):
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    after = os.times()
    spent = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return done, spent


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["obliterate", "--help"]])
def test_help_does_not_import_torch(arguments):
    done, _ = run_python(CODE.format(arguments=arguments, heavy=HEAVY))
    assert done.stderr == "0 []"


def test_help_starts_in_half_a_second():
    best = float("inf")
    for _ in range(ATTEMPTS):
        best = min(best, run_python(CODE.format(arguments=["--help"], heavy=HEAVY))[1])
        if best < FASTEST:
            return
    pytest.fail(f"the fastest of {ATTEMPTS} starts took {best:.2f} s")


def test_a_wrong_method_is_refused_without_torch():
    arguments = ["obliterate", "x/y", "--method", "advancd"]
    done, _ = run_python(CODE.format(arguments=arguments, heavy=HEAVY[:2]))
    assert done.stderr.endswith("2 []")


@pytest.mark.parametrize("arguments", [["runs"], ["community", "leaderboard"]])
def test_recorded_runs_are_shown_without_torch(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_RUNS", str(tmp_path / "runs.sqlite"))
    done, _ = run_python(CODE.format(arguments=arguments, heavy=HEAVY))
    assert done.stderr == "0 []"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"obliteratus {obliteratus.__version__}\n"


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert command in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert "Usage: obliteratus " + command in capsys.readouterr().out


def test_a_closed_pipe_ends_the_program_quietly():
    done = subprocess.run(
        f"{sys.executable} -m obliteratus.cli.main methods | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_request_to_end_is_taken_as_ctrl_c():
    code = """
import signal, sys
from obliteratus.models import catalogue
catalogue.catalogue = lambda: signal.raise_signal(signal.SIGTERM)
from obliteratus.cli.main import main
sys.argv = ["obliteratus", "models"]
sys.exit(main())
"""
    done, _ = run_python(code)
    assert done.stderr == "error: Stopped before the first stage; nothing was written.\n"
    assert done.returncode == 1
