"""Recording a run while it happens: begun in the book, and ended there however it ends."""

import contextlib
import contextvars
import importlib.metadata
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from obliteratus.community.book import VARIABLE, RunBook, book_path
from obliteratus.community.facts import hardware, results_of, settings_of
from obliteratus.community.record import Kind, Local, Record, Results, State
from obliteratus.errors import StorageError, UsageError
from obliteratus.events import Note, emit
from obliteratus.processes import is_first
from obliteratus.settings.section import Section
from obliteratus.store.secrets import without_secrets
from obliteratus.verify.report import Report

PACKAGES = ("obliteratus", "torch", "transformers", "safetensors", "numpy")
_is_recording: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "obliteratus_recording", default=False
)


@dataclass
class Entry:
    """A run while it lasts; it fills in what it finds.

    Attributes:
        kind: The command.
        model: The model as it was asked for.
        settings: All settings of the run; the record keeps those that are on its list.
        method: The method or recipe.
        folder: Where the result is written.
        edited: The edited model that is compared, as it was asked for.
        seconds: What each stage took; the mapping may still grow.
        numbers: What else was counted.
        deviations: How many things were not done as asked.
        report: What was measured.
        identity: Its id in the book; None where it is not recorded.
    """

    kind: Kind
    model: str
    settings: Section | None = None
    method: str | None = None
    folder: Path | None = None
    edited: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    deviations: int = 0
    report: Report | None = None
    identity: str | None = None

    def record(self, spent: float, error: BaseException | None = None) -> Record:
        """Return the record of the run as it is now, after ``spent`` seconds."""
        given = {} if self.settings is None else self.settings.model_dump(mode="json")
        results: Results | None = None if self.report is None else results_of(self.report)
        device = None if results is None else results.original.device
        behaviour = given.get("behaviour") if self.report is None else self.report.behaviour
        stages = {name: round(value, 3) for name, value in self.seconds.items()}
        return Record(
            kind=self.kind,
            method=self.method,
            behaviour=behaviour,
            seed=given.get("seed"),
            settings=settings_of(given),
            hardware=hardware(device),
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
            seconds={**stages, "total": round(spent, 3)},
            numbers=self.numbers,
            deviations=self.deviations if self.report is None else len(self.report.deviations),
            error=None if error is None else type(error).__name__,
            results=results,
        )

    def local(self, error: BaseException | None = None) -> Local:
        """Return what only this machine needs."""
        sentence = None if error is None else " ".join(without_secrets(str(error)).split())
        return Local(
            model=without_secrets(self.model),
            edited=None if self.edited is None else without_secrets(self.edited),
            folder=None if self.folder is None else str(self.folder.resolve()),
            sentence=sentence,
        )


@contextlib.contextmanager
def recording(entry: Entry) -> Generator[Entry]:
    """Record the block as a run of its own, unless it is a part of one that is recorded.

    It is in the book while it runs, and ends there as finished, failed or interrupted. A request
    that is wrong (:class:`UsageError`) is no run and leaves no trace. Where the book cannot be
    written, a note says why and the run goes on: its result does not depend on the book. Of several
    processes the first one records.
    """
    path = book_path()
    if path is None or _is_recording.get() or not is_first():
        yield entry
        return
    start = time.perf_counter()
    token = _is_recording.set(True)
    entry.identity = identity = _begun(path, entry)
    try:
        yield entry
    except BaseException as error:
        if isinstance(error, UsageError):
            _forgotten(path, identity)
        else:
            state: State = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            _ended(path, identity, entry, state, time.perf_counter() - start, error)
        raise
    else:
        _ended(path, identity, entry, "finished", time.perf_counter() - start)
    finally:
        _is_recording.reset(token)


def _begun(path: Path, entry: Entry) -> str | None:
    with _told_as_note(), RunBook(path) as book:
        return book.begin(entry.record(0.0), entry.local())
    return None


def _ended(
    path: Path,
    identity: str | None,
    entry: Entry,
    state: State,
    spent: float,
    error: BaseException | None = None,
) -> None:
    if identity is None:
        return
    with _told_as_note(), RunBook(path) as book:
        book.end(identity, state, entry.record(spent, error), entry.local(error))


def _forgotten(path: Path, identity: str | None) -> None:
    if identity is None:
        return
    with _told_as_note(), RunBook(path) as book:
        book.forget(identity)


@contextlib.contextmanager
def _told_as_note() -> Generator[None]:
    try:
        yield
    except StorageError as error:
        emit(Note(f"this run is not recorded: {error} {VARIABLE}=off switches recording off."))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        emit(Note(f"this run is not recorded: {where} of its record: {first['msg']}."))
