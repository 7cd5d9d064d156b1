"""What happened when in a run: stages timed, deviations gathered, events sent."""

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from obliteratus.events import (
    Deviation,
    Stage,
    StageFinished,
    StageStarted,
    emit,
)
from obliteratus.store import Store


@dataclass
class StageNote:
    """Filled in by a stage while it runs: its result in one line, and whether it was cached."""

    text: str = ""
    is_cached: bool = False


@dataclass
class Journal:
    """Seconds per stage (a stage that runs twice adds up) and every deviation of the run.

    ``store`` is the cache that the stages use.
    """

    store: Store
    seconds: dict[str, float] = field(default_factory=dict)
    deviations: list[Deviation] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, stage: Stage, text: str) -> Generator[StageNote]:
        """Time the block as ``stage`` and announce its start and, if it succeeds, its end."""
        emit(StageStarted(stage, text))
        note = StageNote()
        start, before = time.perf_counter(), self.store.saved
        try:
            yield note
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        emit(StageFinished(stage, spent, note.text, note.is_cached, self.store.saved - before))

    def deviate(self, *deviations: Deviation) -> None:
        """Record deviations; one that is there already is not repeated."""
        for deviation in deviations:
            if deviation not in self.deviations:
                self.deviations.append(deviation)
