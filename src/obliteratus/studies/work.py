"""What a worker does: claim, run, finish, until nothing is left; and the heartbeat meanwhile."""

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
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
COMPANY = 16  # units that are done together: what is lost where their worker dies

Runner = Callable[[Entry], Mapping[str, Any]]
"""Does one unit and returns its result, JSON-ready. What it keeps between units (a model) is its
own affair; units of one affinity follow each other where that is possible."""


class JointRunner(ABC):
    """A runner that does some units faster together than one after the other."""

    @abstractmethod
    def __call__(self, entry: Entry) -> Mapping[str, Any]:
        """Do one unit by itself and return its result."""

    @abstractmethod
    def company(self, entry: Entry) -> str | None:
        """Return what units that are done together have in common; None of one done alone."""

    @abstractmethod
    def begin(self, entry: Entry) -> object:
        """Do what a unit does by itself; return its result, or what :meth:`end` makes one of.

        A result is a mapping, and nothing else is one.
        """

    @abstractmethod
    def end(self, begun: Sequence[object]) -> Sequence[Mapping[str, Any]]:
        """Return the results of units that were begun, in their order.

        Where this fails, each of them is done by itself.
        """


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
            claims = [claim, *_company(work, ledger, claim, runner)]
            with beating(work, claims):
                if isinstance(runner, JointRunner) and len(claims) > 1:
                    done += run_together(ledger, claims, runner)
                else:
                    done += run_unit(ledger, claim, runner)
    return done


def _company(work: Work, ledger: Ledger, claim: Claim, runner: Runner) -> tuple[Claim, ...]:
    """Claim what is done together with ``claim``: nothing where other workers want it."""
    if work.workers > 1 or not isinstance(runner, JointRunner):
        return ()
    wanted = runner.company(claim.entry)
    if wanted is None:
        return ()
    return ledger.claim_more(claim, lambda entry: runner.company(entry) == wanted, COMPANY - 1)


def run_unit(ledger: Ledger, claim: Claim, runner: Runner) -> bool:
    """Run one claimed unit and record what came of it; return False where another has it by now.

    Raises:
        StorageError: the disk is full; the claim was given back.
    """
    return _record(ledger, claim, _tried(ledger, [claim], lambda: runner(claim.entry)))


def run_together(ledger: Ledger, claims: Sequence[Claim], runner: JointRunner) -> int:
    """Run claimed units together, record what came of each, and return how many are still ours.

    The time of what is done for all of them is divided among them. Where that fails, for one of
    them perhaps, each is run by itself.

    Raises:
        StorageError: the disk is full; claims that were not finished were given back.
    """
    count, left, begun = 0, list(claims), list[tuple[Claim, _Tried]]()
    for claim in claims:
        tried = _tried(ledger, left, lambda claim=claim: runner.begin(claim.entry))
        if tried.error is None and not isinstance(tried.value, Mapping):
            begun.append((claim, tried))
            continue
        left.remove(claim)
        count += _record(ledger, claim, tried)
    if not begun:
        return count
    ended = _tried(ledger, left, lambda: runner.end([tried.value for _, tried in begun]))
    for place, (claim, tried) in enumerate(begun):
        if ended.error is None:
            seconds = tried.seconds + ended.seconds / len(begun)
            one = _Tried(seconds, value=ended.value[place])
        else:
            one = _tried(ledger, left, lambda claim=claim: runner(claim.entry))
        left.remove(claim)
        count += _record(ledger, claim, one)
    return count


@dataclass(frozen=True)
class _Tried:
    """What a call returned, or raised, and the seconds that it took."""

    seconds: float
    value: Any = None
    error: Exception | None = None


def _tried(ledger: Ledger, claims: Sequence[Claim], run: Callable[[], object]) -> _Tried:
    """Run a part of the units of ``claims``, which are given back where the study has to stop."""
    start = time.perf_counter()
    try:
        value = run()
    except KeyboardInterrupt:
        for claim in claims:
            ledger.release(claim)
        raise
    except Exception as error:  # the edge of a worker (style.md 4)
        if is_disk_full(error):
            for claim in claims:
                ledger.release(claim)
            raise StorageError(
                f"the disk is full ({error}). Finished units are kept: free some space, and the "
                "same command goes on."
            ) from error
        return _Tried(time.perf_counter() - start, error=error)
    return _Tried(time.perf_counter() - start, value=value)


def _record(ledger: Ledger, claim: Claim, tried: _Tried) -> bool:
    """Record what came of a unit; return False where another worker has it by now."""
    with contextlib.suppress(LeaseLostError):
        if tried.error is not None:
            ledger.fail(claim, in_words(tried.error), tried.seconds)
            return True
        try:
            ledger.finish(claim, tried.value, tried.seconds)
        except (TypeError, ValueError) as error:  # what it returned is no JSON
            ledger.fail(claim, in_words(error), tried.seconds)
        return True
    return False


@contextlib.contextmanager
def beating(work: Work, claims: Sequence[Claim]) -> Generator[None]:
    """Prolong the leases of ``claims`` from a thread of its own while the block runs.

    A heartbeat that cannot be written is tried again at the next beat; when the lease is over for
    it, the token refuses what the block has made.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(work.lease / BEATS):
            with contextlib.suppress(StorageError), work.ledger() as ledger:
                held = [ledger.beat(claim) for claim in claims]  # of all of them, always
                if not any(held):
                    return

    name = f"heartbeat {claims[0].entry.id}"
    thread = threading.Thread(target=beat, daemon=True, name=name)
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
