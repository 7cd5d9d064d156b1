"""A stage of a command that has no run around it."""

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass

from obliteratus.events import Stage, StageFinished, StageStarted, emit


@dataclass
class Result:
    """What a stage has to say when it ends."""

    text: str = ""


@contextlib.contextmanager
def stage(name: Stage, text: str) -> Generator[Result]:
    """Emit that stage ``name`` starts, and that it finished with the text put into the result."""
    result, start = Result(), time.perf_counter()
    emit(StageStarted(name, text))
    yield result
    emit(StageFinished(name, time.perf_counter() - start, result.text))
