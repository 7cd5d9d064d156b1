"""A book of runs of its own for each test, and recorded runs of planted measurements."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from obliteratus.community.book import Run, RunBook
from obliteratus.community.recording import Entry
from obliteratus.pipeline.methods import settings_for
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.verify.compare import compare
from obliteratus.verify.identity import digest
from obliteratus.verify.report import Report


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's book is, as the environment says."""
    found = tmp_path / "data" / "runs.sqlite"
    monkeypatch.setenv("OBLITERATUS_RUNS", str(found))
    return found


@pytest.fixture
def reported() -> Callable[..., Report]:
    """Return a function that makes the report of a planted edit; equal ones are made once."""
    return _reported


@cache
def _reported(**plant: object) -> Report:
    original, edited, head = planted(Plant(layers=2, documents=12, **plant))  # type: ignore[arg-type]
    return compare(original, edited, edited_head=head)


@pytest.fixture
def recorded(path: Path, reported: Callable[..., Report]) -> Callable[..., Run]:
    """Return a function that puts a finished run of a planted edit into the book."""

    def make(
        method: str = "advanced",
        *,
        kind: str = "obliterate",
        change: Callable[[Report], Report] = lambda report: report,
        weights: str | None = None,
        **plant: object,
    ) -> Run:
        report = change(reported(**plant))
        own = weights or digest([method, plant])
        edited = report.edited.model_copy(update={"weights": own})
        report = report.model_copy(update={"edited": edited})
        entry = Entry(kind, "smollm2-refuser", settings_for("advanced"), method)  # type: ignore[arg-type]
        with RunBook(path) as book:
            identity = book.begin(entry.record(0.0), entry.local())
            entry.report = report
            book.end(identity, "finished", entry.record(2.0), entry.local())
            return book.find(identity)

    return make
