"""What runs on the other machine: it starts, watches and ends one job in a folder.

``python -m obliteratus.remote.agent VERB FOLDER`` prints one JSON value. A job's folder holds
``job.json`` (what to run; ``nice`` in it lowers its priority), ``work/`` (where it runs and
writes), ``events.jsonl`` (its standard output), ``stderr.log``, ``pid.json`` and, when it has
ended, ``exit_code``. Every verb can be repeated: a caller whose link was cut in the middle asks
again.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from obliteratus.store import sha256_of_file
from obliteratus.store.priority import lower_priority

CANCELLED_FILE = "cancelled"
SECONDS_TO_START = 30.0  # a busy machine takes a while to start a Python
SECONDS_TO_END = 15.0  # the program finishes what it writes and then ends
SAME_START = 1.0  # seconds within which two readings of a process's start agree


def start(folder: Path) -> Mapping[str, Any]:
    """Start the job in a session of its own, once, and return its :func:`state`."""
    try:
        (folder / "started").touch(exist_ok=False)
    except FileExistsError:
        return state(folder)
    spawn(folder)
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and not (folder / "pid.json").exists():
        time.sleep(0.05)
    return state(folder)


def spawn(folder: Path) -> subprocess.Popen[bytes]:
    """Return the process that runs the job, in a session of its own: no login's end ends it."""
    (folder / "work").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "obliteratus.remote.agent", "run", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run(folder: Path) -> Mapping[str, Any]:
    """Run the job to its end and write its exit code (negative: minus the signal)."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    lower_priority(job.get("nice", 0))  # of this process, so that its children are born with it
    with (folder / "events.jsonl").open("wb") as out, (folder / "stderr.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "obliteratus.cli.main", *job["words"]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            cwd=folder / "work",
            env={**os.environ, **job["environment"]},
        )
        _write(folder / "pid.json", _identity(os.getpid()) | {"child": _identity(child.pid)})
        if (folder / CANCELLED_FILE).exists():  # before there was a process to be found
            child.terminate()
        code = child.wait()
    _write(folder / "exit_code", code)
    return {"exit_code": code}


def state(folder: Path) -> Mapping[str, Any]:
    """Return whether the job was ``started``, ``lives``, and its ``exit_code`` or None."""
    known = folder / "pid.json"
    process = _process(json.loads(known.read_text(encoding="utf-8"))) if known.exists() else None
    ended = folder / "exit_code"  # read last: whoever is not alive has written it before
    return {
        "started": known.exists(),
        "lives": process is not None,
        "exit_code": json.loads(ended.read_text(encoding="utf-8")) if ended.exists() else None,
    }


def cancel(folder: Path) -> Mapping[str, Any]:
    """Ask the job to end as Ctrl-C would, then end it and its children; return its state."""
    (folder / CANCELLED_FILE).touch()
    known = folder / "pid.json"
    child = None
    if known.exists():
        child = _process(json.loads(known.read_text(encoding="utf-8"))["child"])
    if child is not None:
        family = [child, *child.children(recursive=True)]
        child.terminate()
        _, left = psutil.wait_procs(family, timeout=SECONDS_TO_END)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    deadline = time.monotonic() + SECONDS_TO_END
    while child is not None and time.monotonic() < deadline and state(folder)["lives"]:
        time.sleep(0.05)
    return state(folder)


def manifest(folder: Path) -> Mapping[str, Any]:
    """Return ``{relative path: [bytes, sha256]}`` of every regular file under ``folder``."""
    if folder.is_file():
        return {"": [folder.stat().st_size, sha256_of_file(folder)]}
    return {
        path.relative_to(folder).as_posix(): [path.stat().st_size, sha256_of_file(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


VERBS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = {
    "start": start,
    "run": run,
    "state": state,
    "cancel": cancel,
    "manifest": manifest,
}


def _identity(pid: int) -> dict[str, Any]:
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def _process(identity: Mapping[str, Any]) -> psutil.Process | None:
    """Return the process, unless it has ended and another one has its number."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(identity["pid"])
        is_same = abs(process.create_time() - identity["created"]) < SAME_START
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _write(path: Path, value: object) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(VERBS[sys.argv[1]](Path(sys.argv[2]))) + "\n")
