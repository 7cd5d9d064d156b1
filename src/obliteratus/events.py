"""Typed events that the stages emit and that every front end (terminal, JSON, notebook) renders.

A stage calls :func:`emit`; whoever wants to see the events enters :func:`listening`. With nobody
listening, emitting costs nothing. The listener is per context, so parallel runs do not mix.
"""

import contextlib
import contextvars
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from typing_extensions import override

T = TypeVar("T")
Stage = Literal[
    "summon",
    "probe",
    "analyze",
    "distill",
    "excise",
    "attack",
    "harden",
    "verify",
    "rebirth",
    "study",
]
STAGES: tuple[Stage, ...] = ("summon", "probe", "distill", "excise", "rebirth", "verify")
"""The stages of a run in the order in which they execute (the saved folder is what is verified)."""


@dataclass(frozen=True)
class Deviation:
    """Something was not done as asked; the report prints it.

    Attributes:
        where: The stage or tensor.
        asked: What was wanted.
        done: What happened.
        reason: Why.
    """

    where: str
    asked: str
    done: str
    reason: str


@dataclass(frozen=True)
class Event:
    """The base of all events; ``time`` is seconds since the epoch."""

    kind: ClassVar[str] = "event"
    time: float = field(default_factory=time.time, kw_only=True)

    def as_json(self) -> dict[str, object]:
        """Return a JSON-ready mapping with the event's ``kind`` first."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True)
class StageStarted(Event):
    """A stage begins; ``text`` says in words what it will do."""

    kind: ClassVar[str] = "stage_started"
    stage: Stage
    text: str = ""


@dataclass(frozen=True)
class StageFinished(Event):
    """A stage ended; ``text`` is its result in one line, ``cached`` that it was not recomputed.

    ``saved`` are the seconds that results in the cache saved it: with ``seconds`` what the stage
    takes from scratch.
    """

    kind: ClassVar[str] = "stage_finished"
    stage: Stage
    seconds: float
    text: str = ""
    cached: bool = False
    saved: float = 0.0


@dataclass(frozen=True)
class Progress(Event):
    """``done`` of ``total`` units of a task; ``elapsed`` seconds since the task began."""

    kind: ClassVar[str] = "progress"
    task: str
    done: int
    total: int
    unit: str
    elapsed: float

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self.done / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Time left at the rate so far; infinity before the first unit."""
        return (self.total - self.done) / self.rate if self.rate > 0 else float("inf")


@dataclass(frozen=True)
class TimedProgress(Progress):
    """Progress of units that differ: ``left`` are the seconds left by what each kind has taken.

    Infinity where a kind is left that was not measured yet.
    """

    left: float = float("inf")

    @property
    @override
    def seconds_left(self) -> float:
        """Time left by the measured durations."""
        return self.left

    @override
    def as_json(self) -> dict[str, object]:
        """Return a JSON-ready mapping; an unknown time is null, since JSON has no infinity."""
        unknown = {"left": None} if self.left == float("inf") else {}
        return {**super().as_json(), **unknown}


@dataclass(frozen=True)
class Note(Event):
    """A sentence that the user should read once."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class DeviationRecorded(Event):
    """A deviation, as it happens; it is in the receipt or report as well."""

    kind: ClassVar[str] = "deviation"
    deviation: Deviation


KINDS = {
    kind.kind: kind for kind in (StageStarted, StageFinished, Progress, Note, DeviationRecorded)
}


def from_json(data: Mapping[str, Any]) -> Event | None:
    """Return the event that :meth:`Event.as_json` wrote, or None where it is of no kind known here.

    What a later version adds to an event is left out.
    """
    kind = KINDS.get(str(data.get("event")))
    if kind is None:
        return None
    fields = {key: value for key, value in data.items() if key in kind.__dataclass_fields__}
    if kind is Progress and "left" in data:
        kind = TimedProgress
        fields["left"] = float("inf") if data["left"] is None else data["left"]
    if kind is DeviationRecorded:
        fields["deviation"] = Deviation(**fields["deviation"])
    return kind(**fields)


Listener = Callable[[Event], None]
_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar(
    "obliteratus_listener", default=None
)


def emit(event: Event) -> None:
    """Hand ``event`` to the listener of this context, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(event)


@contextlib.contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Send every event emitted inside the block to ``listener`` (the innermost one wins)."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def without_progress() -> Generator[None]:
    """Drop the :class:`Progress` events of the block; a larger task reports its own."""
    outer = _listener.get()

    def forward(event: Event) -> None:
        if outer is not None and not isinstance(event, Progress):
            outer(event)

    with listening(forward):
        yield


def track(items: Iterable[T], *, task: str, total: int, unit: str) -> Iterator[T]:
    """Yield ``items`` and emit a :class:`Progress` after each; ``total`` counts the items."""
    start = time.perf_counter()
    for done, item in enumerate(items, start=1):
        yield item
        emit(Progress(task, done, total, unit, time.perf_counter() - start))
