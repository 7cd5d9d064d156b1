"""Workers and whole studies killed with SIGKILL at random points: nothing is lost or done twice.

The units are cheap fakes that write down when they begin and end; every process of the real engine
is killed for real.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest

from obliteratus.errors import StorageError
from obliteratus.studies.engines.local import LocalEngine
from obliteratus.studies.ledger import LEDGER_FILE, Entry, Ledger
from obliteratus.studies.work import Runner, Work

KILLS = 50
UNITS = 400
WORKERS = 3


def note(path: str, text: str) -> None:
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)


def fakes(log: str) -> Runner:
    """Make units that take up to 60 ms and say who is at them."""
    chance = random.Random()

    def run(entry: Entry) -> dict[str, object]:
        note(log, f"begin {entry.id} {os.getpid()}\n")
        time.sleep(chance.uniform(0, 0.06))
        note(log, f"end {entry.id} {os.getpid()}\n")
        return {"by": os.getpid(), "square": entry.spec["number"] ** 2}

    return run


def fake_study(folder: Path, units: int) -> Work:
    folder.mkdir()
    with Ledger(folder, create=True) as ledger:
        ledger.add([Entry(f"u{i:03d}", "fake", "none", {"number": i}) for i in range(units)], {})
    return Work(folder, partial(fakes, str(folder / "log")), WORKERS, attempts=10_000)


def count_finishes(folder: Path) -> None:
    """Let the database itself write down every time that a unit becomes finished."""
    raw = sqlite3.connect(folder / LEDGER_FILE)
    raw.executescript(
        "CREATE TABLE finishes (id TEXT, token INTEGER);"
        "CREATE TRIGGER finished AFTER UPDATE OF state ON unit WHEN NEW.state = 'finished' "
        "BEGIN INSERT INTO finishes VALUES (NEW.id, NEW.token); END;"
    )
    raw.close()


def overlaps(log: Path) -> list[str]:
    """Return the units that one process began while another living one was at them.

    A killed process begins and does not end, so a second ``begin`` alone is none; an ``end`` that
    comes after somebody else's ``begin`` is.
    """
    at: dict[str, str] = {}
    found: list[str] = []
    for line in log.read_text().splitlines():
        what, unit, process = line.split()
        if what == "begin":
            at[unit] = process
        elif at[unit] != process:
            found.append(unit)
    return found


def check_all_done_once(folder: Path, units: int) -> None:
    with Ledger(folder) as ledger:
        assert ledger.counts() == {"waiting": 0, "running": 0, "finished": units, "failed": 0}
        for unit in ledger.units():
            assert unit.result is not None
            assert unit.result["square"] == unit.entry.spec["number"] ** 2
    raw = sqlite3.connect(folder / LEDGER_FILE)
    finishes = Counter(row[0] for row in raw.execute("SELECT id FROM finishes"))
    assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()
    assert set(finishes.values()) == {1}
    assert len(finishes) == units
    assert overlaps(folder / "log") == []


class Killer:
    """Kills a random worker that is at a unit, at random times, a given number of times."""

    def __init__(self, folder: Path, kills: int) -> None:
        self.left = kills
        self._folder = folder
        self._random = random.Random(0)

    def run(self, ended: threading.Event) -> None:
        with Ledger(self._folder) as ledger:
            while self.left and not ended.wait(self._random.uniform(0.0, 0.1)):
                at_work = [u.owner for u in ledger.units() if u.state == "running" and u.owner]
                if at_work:
                    time.sleep(self._random.uniform(0.0, 0.06))  # any point of a unit, or between
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(self._random.choice(at_work).split("/")[1]), signal.SIGKILL)
                        self.left -= 1


def test_fifty_killed_workers_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    work = fake_study(tmp_path / "study", UNITS)
    count_finishes(work.folder)
    killer, ended = Killer(work.folder, KILLS), threading.Event()
    thread = threading.Thread(target=killer.run, args=(ended,))
    thread.start()
    more = 0
    try:
        while True:
            LocalEngine().work_off(work, lambda: None)
            if not killer.left:
                break
            more += 1  # all done before all were killed: the study grows
            with Ledger(work.folder) as ledger:
                count = UNITS * (more + 1)
                ledger.add(
                    [Entry(f"u{i:03d}", "fake", "none", {"number": i}) for i in range(count)], {}
                )
    finally:
        ended.set()
        thread.join()
    check_all_done_once(work.folder, UNITS * (more + 1))
    with Ledger(work.folder) as ledger:
        assert sum(unit.deaths for unit in ledger.units()) >= KILLS / 4  # kills that met a unit


def whole_study(work: Work) -> None:
    os.setsid()
    LocalEngine().work_off(work, lambda: None)


def test_a_killed_study_goes_on_and_repeats_no_finished_unit(tmp_path: Path) -> None:
    work = fake_study(tmp_path / "study", 60)
    count_finishes(work.folder)
    for _ in range(3):
        process = multiprocessing.get_context("spawn").Process(target=whole_study, args=(work,))
        process.start()
        with Ledger(work.folder) as ledger:
            before = ledger.counts()["finished"]
            while ledger.counts()["finished"] < before + 5:
                time.sleep(0.01)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    LocalEngine().work_off(work, lambda: None)  # while orphans may still be at their last units
    check_all_done_once(work.folder, 60)


class StopError(Exception):
    pass


def test_a_stopped_study_gives_its_claims_back_and_leaves_no_process(tmp_path: Path) -> None:
    work = fake_study(tmp_path / "study", 2000)

    def watch() -> None:
        with Ledger(work.folder) as ledger:
            if ledger.counts()["finished"] > 10:
                raise StopError

    with pytest.raises(StopError):
        LocalEngine().work_off(work, watch)
    with Ledger(work.folder) as ledger:
        assert ledger.counts()["running"] == 0
        assert {unit.deaths for unit in ledger.units()} == {0}
    alive = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in alive if "spawn_main" in " ".join(p.cmdline())]


def dies() -> Runner:
    os._exit(7)


def test_workers_that_die_before_they_begin_are_not_started_for_ever(tmp_path: Path) -> None:
    work = fake_study(tmp_path / "study", 4)
    with pytest.raises(StorageError, match=r"workers died before they began .* exit code 7"):
        LocalEngine().work_off(Work(work.folder, dies, 3), lambda: None)


def full() -> Runner:
    def run(entry: Entry) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    return run


def test_a_full_disk_stops_the_study_with_a_sentence(tmp_path: Path) -> None:
    work = fake_study(tmp_path / "study", 4)
    with pytest.raises(StorageError, match=r"disk is full .* the same command goes on"):
        LocalEngine().work_off(Work(work.folder, full, 2), lambda: None)
    with Ledger(work.folder) as ledger:
        assert ledger.counts()["waiting"] == 4
