"""A row of the comparison: one edit of one model, what was measured of it, and whether it is stale.

A row that is finished is not measured again. Its key says under which settings and which code it
was made, so that a later call can tell rows of today from rows of another time.
"""

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from obliteratus.errors import MeasurementError, StorageError
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import read_json, write_json
from obliteratus.verify.identity import code_fingerprint, digest
from obliteratus.verify.report import Report

ROW_FILE = "row.json"
Tool = Literal["obliteratus", "heretic"]
Divergence = Literal["kl_first", "kl_sequence"]
SCORING = ("prompts", "statistics", "verify")
"""Packages that decide what a saved folder scores, besides those of ``code_fingerprint``."""
EDITING = (*SCORING, "directions", "edits", "operator", "pipeline")
"""Packages that decide what a method of this program makes of a model."""


class Record(BaseModel):
    """A frozen part of a row that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(Record):
    """Hashes of the settings and of the code that made a row."""

    settings: str
    code: str


class Measures(Record):
    """What the verifier found: shares of harmful prompts, KL in nats, perplexity as a ratio.

    ``original`` is the share that the unedited model refuses.
    """

    original: Estimate
    refusal: Estimate
    success: Estimate
    degenerate: Estimate
    kl_first: Estimate
    kl_sequence: Estimate
    perplexity: Estimate

    @property
    def refuses_more(self) -> bool:
        """Whether refusal grew, as where an edit is a defence: no rival of what removes it."""
        return self.refusal.value > self.original.value


class Seconds(Record):
    """Wall clock: to find the edit, to make and save it, and to measure the saved folder."""

    find: float
    edit: float
    verify: float

    @property
    def total(self) -> float:
        """All three together."""
        return self.find + self.edit + self.verify


class Row(Record):
    """One edit of one model: its ``measures``, or the ``error`` that it ended with."""

    model: str
    name: str
    tool: Tool
    key: Key
    measures: Measures | None = None
    seconds: Seconds | None = None
    note: str = ""
    error: str | None = None


def row_key(settings: object, *, packages: Iterable[str] = EDITING) -> Key:
    """Return the key of a row that ``settings`` (anything JSON-ready) make with today's code."""
    return Key(settings=digest(settings), code=_code(tuple(packages)))


def measures_of(report: Report) -> Measures:
    """Return what a row shows of ``report``.

    Raises:
        MeasurementError: the report has no such row or it has no interval.
    """

    def find(key: str, side: str = "edited") -> Estimate:
        row = report.row(key)
        estimate = None if row is None else getattr(row, side)
        if not isinstance(estimate, Estimate):
            raise MeasurementError(
                f"the report has no {side} '{key}'; verify the folder again with this release."
            )
        return estimate

    return Measures(
        original=find("refusal_harmful", "original"),
        refusal=find("refusal_harmful"),
        success=find("success_harmful"),
        degenerate=find("degenerate_harmful"),
        kl_first=find("kl_first"),
        kl_sequence=find("kl_sequence"),
        perplexity=find("perplexity_heldout", "change"),
    )


def save_row(row: Row, folder: Path) -> None:
    """Write ``row`` into ``folder``, which exists."""
    write_json(folder / ROW_FILE, row.model_dump(mode="json"))


def load_row(folder: Path) -> Row | None:
    """Return the finished row in ``folder``, or None where there is none.

    Raises:
        StorageError: the file is damaged or of another release.
    """
    path = folder / ROW_FILE
    if not path.exists():
        return None
    try:
        return Row.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StorageError(
            f"{path} is not a row of this release: {where}: {first['msg']}. Remove its folder to "
            "measure it again."
        ) from error


def load_rows(root: Path) -> tuple[Row, ...]:
    """Return every finished row below ``root``, which holds ``MODEL/NAME/row.json``."""
    folders = sorted(path.parent for path in root.glob(f"*/*/{ROW_FILE}"))
    return tuple(row for row in map(load_row, folders) if row is not None)


def staleness(row: Row, key: Key | None) -> str:
    """Return what of ``row`` is not as ``key``, today's, says; empty when it is current.

    ``key`` None means that nothing of that name is known today.
    """
    if key is None:
        return "stale: no such row today"
    differs = [
        name for name in ("settings", "code") if getattr(row.key, name) != getattr(key, name)
    ]
    return f"stale: other {' and '.join(differs)}" if differs else ""


def is_dominated(row: Row, other: Row, by: Divergence = "kl_first") -> bool:
    """Say whether ``other`` is at least as low in refusal and in KL, and lower in one of them.

    Rows of two models, rows that failed, rows that refuse more than the original and a row itself
    take no part. The estimates decide,
    not their intervals: whether a difference is beyond noise is for the intervals to say.
    """
    a, b = row.measures, other.measures
    if a is None or b is None or row.model != other.model or a.refuses_more or b.refuses_more:
        return False
    mine = (a.refusal.value, getattr(a, by).value)
    its = (b.refusal.value, getattr(b, by).value)
    return its[0] <= mine[0] and its[1] <= mine[1] and its != mine


def dominators(row: Row, rows: Iterable[Row], by: Divergence = "kl_first") -> tuple[str, ...]:
    """Return the names of the ``rows`` that dominate ``row``, sorted."""
    return tuple(sorted(other.name for other in rows if is_dominated(row, other, by)))


def front(rows: Sequence[Row], by: Divergence = "kl_first") -> tuple[Row, ...]:
    """Return the measured ``rows`` that no other of their model dominates, by rising KL."""
    left = [
        row
        for row in rows
        if row.measures is not None
        and not row.measures.refuses_more
        and not dominators(row, rows, by)
    ]
    return tuple(sorted(left, key=lambda row: getattr(row.measures, by).value))


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return ``rows`` by model, fewest refusals first, then lowest KL; failed ones come last."""

    def place(row: Row) -> tuple[str, bool, float, float, str]:
        m = row.measures
        figures = (0.0, 0.0) if m is None else (m.refusal.value, m.kl_first.value)
        return (row.model, m is None, *figures, row.name)

    return tuple(sorted(rows, key=place))


def _code(packages: tuple[str, ...]) -> str:
    """Return a hash of the measuring code and of every source file of ``packages``."""
    root = Path(str(resources.files("obliteratus")))
    files = [path for name in packages for path in sorted((root / name).rglob("*.py"))]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return digest([code_fingerprint(), hashes])
