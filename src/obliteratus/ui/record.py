"""What a job has said so far: its events, read as they are written."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from obliteratus.events import (
    DeviationRecorded,
    Event,
    Note,
    Progress,
    Stage,
    StageFinished,
    StageStarted,
    from_json,
)

MOST_LINES = 200  # of the log that are kept: a page shows the last of them
LAST_BYTES = 2000  # of standard error, where a job ended without a word
Mark = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class StageRow:
    """One stage: how far it is, what it says, and the seconds it took or has run."""

    stage: Stage
    mark: Mark
    text: str
    seconds: float = 0.0
    started: float = 0.0
    is_cached: bool = False


@dataclass(frozen=True)
class Line:
    """A line of the log."""

    time: float
    label: str
    text: str


@dataclass(frozen=True)
class Record:
    """The events of a job up to now; :meth:`read_on` returns the record with what came since.

    Attributes:
        count: How many events were read.
        stages: In the order in which they began. A stage that runs several times is one row.
        progress: The task in progress, or None.
        lines: The log, the newest last.
        result: What the command gave at its end, or None.
        error: The sentence that it ended with, or None.
        began: When the first event came, in seconds since the epoch; 0 before.
        last: When the last one came.
    """

    count: int = 0
    stages: tuple[StageRow, ...] = ()
    progress: Progress | None = None
    lines: tuple[Line, ...] = ()
    result: Mapping[str, Any] | None = None
    error: str | None = None
    began: float = 0.0
    last: float = 0.0
    _offset: int = field(default=0, repr=False)

    def read_on(self, folder: Path) -> "Record":
        """Read what was written to ``events.jsonl`` since; a line that is half there waits."""
        file = folder / "events.jsonl"
        if not file.exists():
            return self
        with file.open("rb") as stream:
            stream.seek(self._offset)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        found = self
        for line in whole.splitlines():
            found = found.with_event(json.loads(line))
        if (folder / "exit_code").exists() and found.result is None and found.error is None:
            found = replace(found, error=last_words(folder))
        return replace(found, _offset=self._offset + len(whole))

    def with_event(self, data: Mapping[str, Any]) -> "Record":
        """Return the record with one more event."""
        when = float(data.get("time", self.last or time.time()))
        found = replace(self, count=self.count + 1, last=when, began=self.began or when)
        if data.get("event") == "result":
            rest = {key: value for key, value in data.items() if key != "event"}
            return replace(found, result=rest, progress=None)
        if data.get("event") == "error":
            stages = tuple(
                replace(row, mark="failed", seconds=row.seconds + found.last - row.started)
                if row.mark == "running"
                else row
                for row in found.stages
            )
            return replace(found, error=str(data["message"]), stages=stages, progress=None)
        event = from_json(data)
        return found if event is None else found._heard(event)

    def _heard(self, event: Event) -> "Record":
        if isinstance(event, Progress):
            return replace(self, progress=event)
        if isinstance(event, StageStarted):
            return replace(self, stages=self._started(event), progress=None)._said(
                event, event.stage, event.text
            )
        if isinstance(event, StageFinished):
            return replace(self, stages=self._finished(event), progress=None)._said(
                event, event.stage, event.text
            )
        if isinstance(event, Note):
            return self._said(event, "note", event.text)
        if isinstance(event, DeviationRecorded):
            item = event.deviation
            text = f"{item.where}: asked for {item.asked}, did {item.done}, because {item.reason}"
            return self._said(event, "deviation", text)
        return self

    def _said(self, event: Event, label: str, text: str) -> "Record":
        if not text:
            return self
        return replace(self, lines=(*self.lines, Line(event.time, label, text))[-MOST_LINES:])

    def _started(self, event: StageStarted) -> tuple[StageRow, ...]:
        row = self._row(event.stage) or StageRow(event.stage, "running", "")
        return self._with(
            replace(row, mark="running", text=event.text, started=event.time, is_cached=False)
        )

    def _finished(self, event: StageFinished) -> tuple[StageRow, ...]:
        row = self._row(event.stage) or StageRow(event.stage, "done", "")
        seconds = row.seconds + event.seconds
        return self._with(
            replace(row, mark="done", text=event.text, seconds=seconds, is_cached=event.cached)
        )

    def _row(self, stage: Stage) -> StageRow | None:
        return next((row for row in self.stages if row.stage == stage), None)

    def _with(self, row: StageRow) -> tuple[StageRow, ...]:
        if self._row(row.stage) is None:
            return (*self.stages, row)
        return tuple(row if each.stage == row.stage else each for each in self.stages)


def last_words(folder: Path) -> str:
    """Return the last line of a job's standard error, or what can be said without one."""
    file = folder / "stderr.log"
    text = file.read_bytes()[-LAST_BYTES:].decode(errors="replace") if file.exists() else ""
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it ended without saying why."
