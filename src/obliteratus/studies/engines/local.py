"""The engine of one machine: worker processes beside each other, replaced when they die."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, runtime_checkable

from typing_extensions import override

from obliteratus.errors import ObliteratusError, StorageError
from obliteratus.studies.engine import ENGINES, Engine
from obliteratus.studies.ledger import Ledger, owner_here
from obliteratus.studies.work import Work, work_off

LOOK_SECONDS = 0.25  # between looks at the workers
FRUITLESS = 10
"""Workers that may die in a row without a unit ended or begun in between."""
STOP_SECONDS = 10.0  # until a worker that was asked to end is killed
ENDED_BADLY = 1


@runtime_checkable
class _Said(Protocol):
    """The end of a pipe that is read; what its class is depends on the system."""

    def poll(self) -> bool: ...

    def recv(self) -> str: ...

    def close(self) -> None: ...


@dataclass
class _Hand:
    """A worker process, its name in the ledger, and a pipe on which it says what stopped it."""

    process: SpawnProcess
    owner: str
    said: _Said


@ENGINES.register("local")
class LocalEngine(Engine):
    """Worker processes that are spawned, so that none inherits a lock, a thread or a model."""

    name = "local"

    @override
    def work_off(self, work: Work, watch: Callable[[], None]) -> None:
        hands: list[_Hand] = []
        fruitless, before = 0, (-1, -1)
        with work.ledger() as ledger:
            try:
                while True:
                    died = [hand for hand in hands if not hand.process.is_alive()]
                    hands = [hand for hand in hands if hand not in died]
                    for hand in died:
                        _check(hand)
                    ledger.reclaim_dead()
                    watch()
                    counts = ledger.counts()
                    waiting, running = counts["waiting"], counts["running"]
                    if not waiting and not running:
                        return
                    state = (waiting, running)
                    killed = sum(hand.process.exitcode != 0 for hand in died)
                    fruitless = fruitless + killed if state == before else 0
                    before = state
                    if fruitless > FRUITLESS:
                        raise StorageError(
                            f"{fruitless} workers died before they began (the last one with exit "
                            f"code {died[-1].process.exitcode if died else '?'}). Is there memory "
                            "for the model? Run fewer --workers."
                        )
                    wanted = min(work.workers, waiting + running)
                    hands += [_started(work) for _ in range(wanted - len(hands))]
                    wait([hand.process.sentinel for hand in hands], timeout=LOOK_SECONDS)
            finally:
                _stop(hands, ledger)


def _started(work: Work) -> _Hand:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, there, os.getpid()))
    process.start()
    there.close()
    return _Hand(process, owner_here(process.pid), here)


def _check(hand: _Hand) -> None:
    """Raise what stopped a worker, if it was not a unit and not a signal."""
    try:
        if hand.said.poll():
            raise StorageError(hand.said.recv())
    except EOFError:  # killed: it has closed the pipe and said nothing
        return
    finally:
        hand.said.close()


def _stop(hands: list[_Hand], ledger: Ledger) -> None:
    for hand in hands:
        hand.process.terminate()
    for hand in hands:
        hand.process.join(STOP_SECONDS)
        if hand.process.is_alive():
            hand.process.kill()
            hand.process.join()
        ledger.release_all(hand.owner)


def _work(work: Work, said: Any, parent: int) -> None:
    """Work until nothing is left or the study is gone: the main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's to handle: it stops us
    os.dup2(2, 1)  # standard output is the study's: with --json nothing else may be in it
    try:
        work_off(work, owner_here(), is_wanted=lambda: os.getppid() == parent)
    except ObliteratusError as error:
        said.send(str(error))
        raise SystemExit(ENDED_BADLY) from error
