"""Commands that the page has started: in order, one at a time for each model, and stoppable.

A job is a folder under ``<workspace>/.jobs`` and a process that outlives this one: the agent that
runs jobs on other machines (:mod:`obliteratus.remote.agent`) runs it here. A server that is killed
and started again finds its jobs: those that run go on, those that wait are started, and those that
ended have their events and results.
"""

import contextlib
import json
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from obliteratus.errors import UsageError
from obliteratus.remote import agent
from obliteratus.store import read_json, write_json
from obliteratus.ui.record import Record

Kind = Literal["obliterate", "benchmark", "sweep", "export", "analyze", "publish"]
State = Literal["queued", "running", "finished", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("finished", "failed", "cancelled")
NICE = 10  # jobs give way to the page, so that a click is answered while they run
PAUSE = 0.25  # seconds between two looks at the queue
NOTE_FILE = "note.json"


@dataclass(frozen=True)
class Order:
    """What is to be done.

    Attributes:
        kind: Which tab it is of.
        title: What a person reads.
        model: What it works on; two orders with the same model never run at once.
        words: The command, without the program's name; it has to write events as JSON.
        output: What it writes.
    """

    kind: Kind
    title: str
    model: str
    words: tuple[str, ...]
    output: Path


@dataclass(frozen=True)
class Job:
    """An order that was taken, by the id that is its folder's name."""

    id: str
    order: Order
    created: float


@dataclass(frozen=True)
class View:
    """A job as it is now. ``position`` counts from 1 in the queue, and is 0 outside of it."""

    job: Job
    state: State
    record: Record
    position: int = 0

    @property
    def is_over(self) -> bool:
        """Say whether nothing more will happen."""
        return self.state in ENDED

    @property
    def version(self) -> tuple[str, State, int, int]:
        """What changes whenever the page has to be drawn again."""
        return self.job.id, self.state, self.record.count, self.position


class Jobs:
    """The jobs of one workspace. Enter it to let them run; leaving it stops nothing that runs."""

    def __init__(self, workspace: Path, *, at_once: int = 1) -> None:
        """``at_once`` jobs run side by side, of different models."""
        self.folder = workspace / ".jobs"
        self._at_once = at_once
        self._records: dict[str, Record] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._guard = threading.RLock()
        self._stop = threading.Event()

    @contextlib.contextmanager
    def open(self) -> Generator["Jobs"]:
        """Start what waits, as long as the block runs.

        Raises:
            UsageError: another server has this workspace.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"another `obliteratus ui` has {self.folder.parent} open. Use its page, stop it, "
                "or choose another --workspace."
            ) from error
        tending = threading.Thread(target=self._tend, name="jobs", daemon=True)
        tending.start()
        try:
            yield self
        finally:
            self._stop.set()
            tending.join()
            for child in self._children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(PAUSE)  # of those that are just ending
                child.returncode = 0  # the others go on without us: not to be waited for
            lock.release()

    def submit(self, order: Order) -> Job:
        """Put ``order`` at the end of the queue."""
        created = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(created))
        job = Job(f"{stamp}-{secrets.token_hex(3)}", order, created)
        work = self.folder / f".{job.id}.part"
        work.mkdir(parents=True)
        write_json(work / "job.json", {"words": list(order.words), "environment": {}, "nice": NICE})
        write_json(work / NOTE_FILE, _as_json(job))
        work.rename(self.folder / job.id)
        return job

    def all(self, *kinds: Kind) -> list[Job]:
        """Return the jobs of these kinds (of all, where none is given), the newest first."""
        found = [_read(path) for path in self.folder.glob(f"*/{NOTE_FILE}")]
        chosen = [job for job in found if not kinds or job.order.kind in kinds]
        return sorted(chosen, key=lambda job: (job.created, job.id), reverse=True)

    def find(self, identity: str) -> Job:
        """Return the job with this id.

        Raises:
            UsageError: there is none.
        """
        file = self.folder / Path(identity).name / NOTE_FILE
        if not identity or not file.exists():
            raise UsageError(f"there is no job {identity!r} in {self.folder.parent}.")
        return _read(file)

    def view(self, identity: str) -> View:
        """Return the job as it is now, with what it has said so far.

        Raises:
            UsageError: there is none.
        """
        job = self.find(identity)
        state = self.state(job)
        with self._guard:
            record = self._records.get(job.id, Record())
            record = self._records[job.id] = record.read_on(self.folder / job.id)
        position = 0
        if state == "queued":
            waiting = [each.id for each in self._in_order() if self.state(each) == "queued"]
            position = waiting.index(job.id) + 1 if job.id in waiting else 1
        return View(job, state, record, position)

    def state(self, job: Job) -> State:
        """Return where the job is."""
        folder = self.folder / job.id
        unfinished: State = "cancelled" if (folder / agent.CANCELLED_FILE).exists() else "failed"
        if (folder / "exit_code").exists():
            code = json.loads((folder / "exit_code").read_text(encoding="utf-8"))
            return "finished" if code == 0 else unfinished
        if not (folder / "started").exists():
            return "cancelled" if unfinished == "cancelled" else "queued"
        return "running" if _may_live(folder) else unfinished

    def cancel(self, job: Job) -> None:
        """Take the job out of the queue, or end its process and all that it has started."""
        with self._guard:  # it is not started at the same moment
            if self.state(job) in ENDED:
                return
            (self.folder / job.id / agent.CANCELLED_FILE).touch()
        agent.cancel(self.folder / job.id)

    def forget(self, job: Job) -> None:
        """Remove the record of a job that has ended; what it has written stays.

        Raises:
            UsageError: it has not ended.
        """
        if self.state(job) not in ENDED:
            raise UsageError(f"{job.order.title} has not ended; cancel it first.")
        shutil.rmtree(self.folder / job.id)

    def _in_order(self) -> list[Job]:
        return self.all()[::-1]

    def _tend(self) -> None:
        while not self._stop.wait(PAUSE):
            self._start_what_can_be()
            self._children = [each for each in self._children if each.poll() is None]

    def _start_what_can_be(self) -> None:
        with self._guard:
            jobs = [(job, self.state(job)) for job in self._in_order()]
            busy = [job.order.model for job, state in jobs if state == "running"]
            for job, state in jobs:
                if state == "queued" and len(busy) < self._at_once and job.order.model not in busy:
                    (self.folder / job.id / "started").touch(exist_ok=False)
                    self._children.append(agent.spawn(self.folder / job.id))
                    busy.append(job.order.model)


def _may_live(folder: Path) -> bool:
    """Say whether a job that was started and has no exit code lives, or is just about to."""
    known = agent.state(folder)
    if known["started"]:
        return known["lives"] or known["exit_code"] is not None  # it ended between two looks
    return time.time() - (folder / "started").stat().st_mtime < agent.SECONDS_TO_START


def _as_json(job: Job) -> dict[str, Any]:
    order = asdict(job.order) | {"output": str(job.order.output)}
    return {"id": job.id, "created": job.created, "order": order}


def _read(file: Path) -> Job:
    facts: Mapping[str, Any] = read_json(file)
    order = dict(facts["order"])
    words: Sequence[str] = order.pop("words")
    output = Path(order.pop("output"))
    return Job(facts["id"], Order(words=tuple(words), output=output, **order), facts["created"])
