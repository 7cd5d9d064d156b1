"""Run a study: its units into the ledger, an engine over them, and the results out."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from obliteratus import __version__
from obliteratus.community.recording import Entry, recording
from obliteratus.errors import StorageError, UsageError
from obliteratus.events import Note, StageFinished, StageStarted, TimedProgress, emit
from obliteratus.store import Store, atomic_file, write_json
from obliteratus.store.files import storage_error
from obliteratus.studies.engine import ENGINES
from obliteratus.studies.ledger import LEDGER_FILE, Ledger, Recorded
from obliteratus.studies.pace import Pace, pace
from obliteratus.studies.results import PARQUET_FILE, results
from obliteratus.studies.schema import Study
from obliteratus.studies.units import units
from obliteratus.studies.work import Runner, Work

STUDY_FILE = "study.json"
SECONDS_BETWEEN_LOOKS = 1.0
SHARE_OF_LOOKING = 0.02  # of the time: reading thousands of units takes a while
SECONDS_OF_SILENCE = 30.0  # while nothing ends, after which the time left is told again
UNIT = "units"


@dataclass(frozen=True)
class StudyResult:
    """The folder of a study, what became of its units, and the seconds of this run."""

    folder: Path
    units: tuple[Recorded, ...]
    pace: Pace
    seconds: float


def run_study(
    study: Study,
    folder: Path,
    *,
    workers: int = 1,
    engine: str = "local",
    address: str | None = None,
    retry_failed: bool = False,
    store: Store | None = None,
) -> StudyResult:
    """Do every unit of ``study`` that is not done yet, and write ``results.parquet``.

    ``folder`` holds the ledger; the same call goes on where a killed one stopped, and several may
    run at once. A unit that fails keeps its error and does not stop the others. However the run
    ends, what is finished is exported.

    Raises:
        UsageError: a name or a setting is wrong, there is nothing to do, or ``folder`` holds
            another study.
        StorageError: the disk is full, or the ledger cannot be read. Finished units are kept.
    """
    if address is not None and engine != "ray":
        raise UsageError(f"--address goes with --engine ray; the engine '{engine}' has none.")
    chosen = ENGINES[engine]()
    store = store or Store()
    found, missing = units(study, store=store)
    start = time.perf_counter()
    facts = {
        "study": study.model_dump(mode="json"),
        "version": __version__,
        "left_out": [vars(each) for each in missing],
    }
    entry = Entry("study", ", ".join(study.models), method=study.name, folder=folder)
    with recording(entry), _made(folder) as ledger:
        new = ledger.add([unit.entry for unit in found], facts)
        _describe(folder, facts)
        if retry_failed:
            emit(Note(f"{ledger.retry_failed()} failed units are tried again."))
        before = ledger.counts()
        emit(StageStarted("study", _plan_words(len(found), new, before["finished"])))
        work = Work(
            folder,
            partial(make_runner, store.root, workers),
            workers=workers,
            attempts=study.attempts,
            address=address,
        )
        try:
            chosen.work_off(work, _Watch(ledger, workers).look)
        finally:
            export(folder, ledger)
        done = ledger.units()
        stands = pace(done, workers=workers)
        entry.numbers |= counted(stands)
    seconds = time.perf_counter() - start
    emit(StageFinished("study", seconds, in_short(stands)))
    return StudyResult(folder, done, stands, seconds)


def make_runner(cache: Path, workers: int) -> Runner:
    """Make the runner of one of ``workers`` on this machine, in its own process."""
    from obliteratus.studies.runner import StudyRunner, threads_per_worker

    return StudyRunner(cache, threads_per_worker(workers))


def export(folder: Path, ledger: Ledger) -> None:
    """Write what the ledger has by now as ``results.parquet``.

    Raises:
        StorageError: the disk is full.
    """
    name = str(ledger.facts()["study"]["name"])
    results(name, ledger.units()).write_parquet(folder / PARQUET_FILE)


def counted(stands: Pace) -> dict[str, float]:
    """Return the counts of units, as a record of the run keeps them."""
    counts = stands.counts
    every = {"units": stands.total, "finished": counts["finished"], "failed": counts["failed"]}
    return {name: float(count) for name, count in every.items()}


def in_short(stands: Pace) -> str:
    """Return where a study stands in a few words."""
    counts = stands.counts
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    rest = counts["waiting"] + counts["running"]
    left = f", {rest} to do" if rest else ""
    return f"{counts['finished']} of {stands.total} units finished{failed}{left}"


class _Watch:
    """Reads the ledger now and then, and emits what has changed."""

    def __init__(self, ledger: Ledger, workers: int) -> None:
        self._ledger = ledger
        self._workers = workers
        self._start = time.perf_counter()
        self._next = 0.0
        self._said, self._said_at = -1, 0.0
        self._told: set[str] = {u.entry.id for u in ledger.units() if u.state == "failed"}

    def look(self) -> None:
        now = time.perf_counter()
        if now < self._next:
            return
        seen = self._ledger.units(with_results=False)
        took = time.perf_counter() - now
        self._next = now + max(SECONDS_BETWEEN_LOOKS, took / SHARE_OF_LOOKING)
        for unit in seen:
            if unit.state == "failed" and unit.entry.id not in self._told:
                self._told.add(unit.entry.id)
                emit(Note(f"{unit.entry.spec['name']} failed: {unit.error}"))
        stands = pace(seen, workers=self._workers)
        if stands.done != self._said or now - self._said_at > SECONDS_OF_SILENCE:
            self._said, self._said_at = stands.done, now
            emit(progress_of(stands, now - self._start))


def progress_of(stands: Pace, elapsed: float) -> TimedProgress:
    """Return where a study stands as an event."""
    return TimedProgress("study", stands.done, stands.total, UNIT, elapsed, left=stands.left)


def _made(folder: Path) -> Ledger:
    """Open the ledger of ``folder``, made if need be."""
    try:
        is_new = not folder.exists()
        if not is_new and any(folder.iterdir()) and not (folder / LEDGER_FILE).exists():
            raise StorageError(
                f"{folder} holds something else than a study. Choose another --output."
            )
        folder.mkdir(parents=True, exist_ok=True)
        return Ledger(folder, create=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def _describe(folder: Path, facts: dict[str, Any]) -> None:
    """Put the study beside its ledger, for people and for programs without SQLite."""
    with atomic_file(folder / STUDY_FILE, replace=True) as file:
        write_json(file, facts)


def _plan_words(count: int, new: int, finished: int) -> str:
    if new == count:
        return f"{count} units"
    added = f", {new} of them new" if new else ""
    return f"{count} units{added}; {finished} are finished already"
