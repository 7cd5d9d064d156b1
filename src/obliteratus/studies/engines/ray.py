"""The engine of many machines: workers of a Ray cluster, the ledger where the study was started.

The ledger is a file here, so this process claims, beats and finishes for the workers, each of which
is an actor that keeps its model. A worker is placed where its model fits
(:mod:`obliteratus.studies.placement`). One that is
gone (a node died, memory ran out) loses its unit, which the ledger gives to another.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from obliteratus.errors import StorageError, UsageError
from obliteratus.store import is_disk_full
from obliteratus.studies.engine import ENGINES, Engine
from obliteratus.studies.ledger import Claim, Entry, LeaseLostError, Ledger, owner_here
from obliteratus.studies.placement import Needs, accelerators, needs, spread, too_much
from obliteratus.studies.work import BEATS, MakeRunner, Work, in_words

FRUITLESS = 5
"""Workers that may die in a row without a unit ended in between."""
LOOK_SECONDS = 0.05  # between looks at what has ended
SECONDS_TO_CONNECT = 10.0
MISSING = "the engine 'ray' needs Ray. Install it with `pip install 'obliteratus[ray]'`."


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back: a result, or the words of an error."""

    result: Mapping[str, Any] | None
    error: str | None
    seconds: float


@dataclass
class _Hand:
    """A worker: its actor, the model that it holds, and the unit that it is at.

    ``begun`` ends when the actor has found a place in the cluster.
    """

    actor: Any
    affinity: str
    begun: Any
    claim: Claim | None = None
    ended: Any = None


class Worker:
    """What runs in an actor: a runner that is made there, and does one unit at a time."""

    def __init__(self, make_runner: MakeRunner, gpus: int = 0) -> None:
        """``gpus`` are this worker's: a model is spread over them where they are several."""
        self._runner = make_runner()
        self._gpus = gpus

    def begin(self) -> None:
        """Return when this worker is there."""

    def do(self, entry: Entry) -> Outcome:
        """Do a unit. What fails is said in words; a full disk stops the study.

        Raises:
            StorageError: the disk of this node is full.
        """
        start = time.perf_counter()
        try:
            result = self._runner(replace(entry, spec=spread(entry.spec, self._gpus)))
        except Exception as error:  # the edge of a worker (style.md 4)
            if is_disk_full(error):
                raise StorageError(f"the disk of a node is full ({error}).") from error
            return Outcome(None, in_words(error), time.perf_counter() - start)
        return Outcome(result, None, time.perf_counter() - start)


@ENGINES.register("ray")
class RayEngine(Engine):
    """Actors of a Ray cluster: the one at ``Work.address``, or one made here for this study."""

    name = "ray"

    @override
    def work_off(self, work: Work, watch: Callable[[], None]) -> None:
        with _cluster(work) as ray, work.ledger() as ledger:
            crew = _Crew(ray, work, ledger)
            try:
                while crew.counts_left():
                    watch()
                    crew.collect()
                    crew.fill()
            finally:
                crew.stop()
            watch()


class _Crew:
    """The workers and the units that they are at."""

    def __init__(self, ray: Any, work: Work, ledger: Ledger) -> None:
        self._ray, self._work, self._ledger = ray, work, ledger
        self._owner = owner_here()
        self._hands: list[_Hand] = []
        self._beaten = time.monotonic()
        self._remote = ray.remote(Worker)
        self._needs: dict[str, Needs] = {}
        self._gpus = accelerators(ray)
        self._fruitless = 0

    def counts_left(self) -> bool:
        """Say whether there are units that wait or are at work."""
        counts = self._ledger.counts()
        return bool(counts["waiting"] or counts["running"])

    def collect(self) -> None:
        """Record what has ended, and prolong the leases of what has not.

        Raises:
            StorageError: the disk of a node is full.
        """
        busy = {hand.ended: hand for hand in self._hands if hand.ended is not None}
        if not busy:
            time.sleep(LOOK_SECONDS)
            return
        ended, _ = self._ray.wait(list(busy), num_returns=len(busy), timeout=LOOK_SECONDS)
        for reference in ended:
            self._record(busy[reference], reference)
        if time.monotonic() - self._beaten > self._work.lease / BEATS:
            self._beaten = time.monotonic()
            for hand in self._hands:
                if hand.claim is not None:
                    self._ledger.beat(hand.claim)

    def fill(self) -> None:
        """Give units to idle workers, and new workers to units, as long as any wait."""
        for hand in [hand for hand in self._hands if hand.claim is None]:
            if not (self._give(hand) or self._take_over(hand)):
                return
        while len(self._hands) < self._work.workers:
            if not self._give(None):
                return

    def stop(self) -> None:
        """End all workers and give their claims back."""
        for hand in self._hands:
            self._ray.kill(hand.actor)
        self._hands.clear()
        self._ledger.release_all(self._owner)

    def _take_over(self, idle: _Hand) -> bool:
        """Give ``idle`` the unit of a worker that has no place in the cluster, if there is one.

        After the death of a node there may be room for fewer workers than were asked for.
        """
        for hand in self._hands:
            if hand.claim is None or self._ray.wait([hand.begun], timeout=0)[0]:
                continue
            self._hands.remove(hand)
            self._ray.kill(hand.actor)
            if hand.affinity == idle.affinity:
                idle.claim, idle.ended = hand.claim, idle.actor.do.remote(hand.claim.entry)
            else:
                self._ledger.release(hand.claim)  # to be claimed with room for its own model
            return True
        return False

    def _give(self, idle: _Hand | None) -> bool:
        """Claim a unit and start it, with ``idle`` or a new worker; say whether there was one."""
        claim = self._ledger.claim(self._owner, None if idle is None else idle.affinity)
        if claim is None:
            return False
        affinity = claim.entry.affinity
        if idle is not None and idle.affinity != affinity:
            self._ray.kill(idle.actor)  # its memory is for the next model
            self._hands.remove(idle)
            idle = None
        if idle is None:
            if affinity not in self._needs:
                total = self._ray.cluster_resources()
                self._needs[affinity] = needs(
                    total, self._work.workers, claim.entry.spec, self._gpus
                )
            asked = self._needs[affinity]
            reason = too_much(self._ray, asked, self._gpus)
            if reason is not None:
                self._ledger.fail(claim, reason, 0.0)
                return True
            actor = self._remote.options(
                num_cpus=asked.cpus, num_gpus=asked.gpus, memory=asked.memory, max_restarts=0
            ).remote(self._work.make_runner, asked.gpus)
            idle = _Hand(actor, affinity, actor.begin.remote())
            self._hands.append(idle)
        idle.claim, idle.ended = claim, idle.actor.do.remote(claim.entry)
        return True

    def _record(self, hand: _Hand, reference: Any) -> None:
        claim = hand.claim
        assert claim is not None
        hand.claim = hand.ended = None
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayTaskError as error:
            self._ledger.release(claim)
            raise StorageError(str(error.cause)) from error
        except errors.RayError as error:  # the worker is gone, and with it the node or its memory
            self._hands.remove(hand)
            self._ledger.lost(claim)
            self._fruitless += 1
            if self._fruitless > FRUITLESS:
                raise StorageError(
                    f"{self._fruitless} workers died one after the other, the last one so: "
                    f"{in_words(error)}. Does every node have this program and its libraries?"
                ) from error
            return
        self._fruitless = 0
        try:
            if outcome.result is None:
                self._ledger.fail(claim, outcome.error or "no result", outcome.seconds)
            else:
                self._ledger.finish(claim, outcome.result, outcome.seconds)
        except LeaseLostError:  # this process slept for longer than a lease; another one has it
            return
        except (TypeError, ValueError) as error:  # what it returned is no JSON
            self._ledger.fail(claim, in_words(error), outcome.seconds)


@contextmanager
def _cluster(work: Work) -> Generator[Any]:
    """Yield Ray, connected to a cluster; one that was made for it ends with the block.

    Raises:
        UsageError: Ray is not installed.
        StorageError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError as error:
        raise UsageError(MISSING) from error
    was_there = ray.is_initialized()
    if not was_there:
        try:
            _connect(ray, work)
        except (OSError, RuntimeError, ValueError) as error:
            raise StorageError(
                f"no Ray cluster answers at {work.address or 'this machine'} ({in_words(error)}). "
                "`ray start --head` starts one; `--address auto` takes the one of this machine."
            ) from error
    try:
        yield ray
    finally:
        if not was_there:
            ray.shutdown()


def _connect(ray: Any, work: Work) -> None:
    """Connect to the cluster at the address, or make one of this machine.

    Raises:
        OSError, RuntimeError, ValueError: nobody answers there, or what answers is no cluster.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if work.address is None:
        ray.init(num_cpus=work.workers, include_dashboard=False, **quiet)
        return
    host, _, port = work.address.rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes
        place = (host.removeprefix("ray://"), int(port))
        socket.create_connection(place, SECONDS_TO_CONNECT).close()
    ray.init(address=work.address, **quiet)
