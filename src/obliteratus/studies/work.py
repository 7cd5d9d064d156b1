"""What a worker does: claim, run, finish, until nothing is left; and the heartbeat meanwhile."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obliteratus.errors import ObliteratusError, StorageError
from obliteratus.store import is_disk_full
from obliteratus.studies.ledger import (
    ATTEMPTS,
    LEASE_SECONDS,
    Claim,
    Entry,
    LeaseLostError,
    Ledger,
)

BEATS = 4  # heartbeats in a lease
IDLE_SECONDS = 0.2  # between looks at a ledger whose last units are with others

Runner = Callable[[Entry], Mapping[str, Any]]
"""Does one unit and returns its result, JSON-ready. What it keeps between units (a model) is its
own affair; units of one affinity follow each other where that is possible."""
MakeRunner = Callable[[], Runner]
"""Makes the runner of one worker, in the process of that worker: it is pickled on its way there."""


@dataclass(frozen=True)
class Work:
    """What an engine is given: the ledger's folder, and how to make the runner of a worker.

    ``address`` is where the engine finds its cluster, for one that has any.
    """

    folder: Path
    make_runner: MakeRunner
    workers: int = 1
    lease: float = LEASE_SECONDS
    attempts: int = ATTEMPTS
    address: str | None = None

    def ledger(self) -> Ledger:
        """Open the ledger, once per thread and process."""
        return Ledger(self.folder, lease=self.lease, attempts=self.attempts)


def work_off(work: Work, owner: str, *, is_wanted: Callable[[], bool] = lambda: True) -> int:
    """Do units until all of them are finished or failed, and return how many this worker did.

    A unit that fails keeps its error and does not stop the others. Where the last units are with
    other workers it waits, to do them if those die. ``is_wanted`` is asked between units.

    Raises:
        StorageError: the ledger cannot be written, or the disk is full. The unit at hand is given
            back where that is possible; finished ones are kept.
    """
    runner = work.make_runner()
    affinity: str | None = None
    done = 0
    with work.ledger() as ledger:
        while is_wanted():
            claim = ledger.claim(owner, affinity)
            if claim is None:
                if not ledger.counts()["running"]:
                    break
                time.sleep(IDLE_SECONDS)
                continue
            affinity = claim.entry.affinity
            with contextlib.suppress(LeaseLostError), beating(work, claim):
                run_unit(ledger, claim, runner)
                done += 1
    return done


def run_unit(ledger: Ledger, claim: Claim, runner: Runner) -> None:
    """Run one claimed unit and record what came of it.

    Raises:
        LeaseLostError: another worker has the unit by now.
        StorageError: the disk is full; the claim was given back.
    """
    start = time.perf_counter()
    try:
        result = runner(claim.entry)
    except KeyboardInterrupt:
        ledger.release(claim)
        raise
    except Exception as error:  # the edge of a worker (style.md 4)
        if is_disk_full(error):
            ledger.release(claim)
            raise StorageError(
                f"the disk is full ({error}). Finished units are kept: free some space, and the "
                "same command goes on."
            ) from error
        ledger.fail(claim, in_words(error), time.perf_counter() - start)
        return
    seconds = time.perf_counter() - start
    try:
        ledger.finish(claim, result, seconds)
    except (TypeError, ValueError) as error:  # what it returned is no JSON
        ledger.fail(claim, in_words(error), seconds)


@contextlib.contextmanager
def beating(work: Work, claim: Claim) -> Generator[None]:
    """Prolong the lease of ``claim`` from a thread of its own while the block runs.

    A heartbeat that cannot be written is tried again at the next beat; when the lease is over for
    it, the token refuses what the block has made.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(work.lease / BEATS):
            with contextlib.suppress(StorageError), work.ledger() as ledger:
                if not ledger.beat(claim):
                    return

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeat {claim.entry.id}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def in_words(error: Exception) -> str:
    """Return what a failed unit keeps: the message, and the kind of an error not of ours."""
    message = " ".join(str(error).split())
    if isinstance(error, ObliteratusError):
        return message
    return f"{type(error).__name__}: {message}"
