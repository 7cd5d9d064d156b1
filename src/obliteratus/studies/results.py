"""What a study has found, as a table: one row for each unit and metric, in Parquet and for SQL."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from obliteratus.errors import UsageError
from obliteratus.statistics.multiple import holm
from obliteratus.store import atomic_file
from obliteratus.studies.ledger import Recorded

PARQUET_FILE = "results.parquet"
SCHEMA = pa.schema(
    [
        ("study", pa.string()),
        ("unit", pa.string()),
        ("state", pa.string()),
        ("kind", pa.string()),
        ("name", pa.string()),
        ("model", pa.string()),
        ("behaviour", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("strength", pa.float64()),
        ("part", pa.string()),
        ("replaced_by", pa.string()),
        ("layer", pa.int64()),
        ("head", pa.int64()),
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("metric", pa.string()),
        ("unit_of_value", pa.string()),
        ("original", pa.float64()),
        ("value", pa.float64()),
        ("value_low", pa.float64()),
        ("value_high", pa.float64()),
        ("change", pa.float64()),
        ("change_low", pa.float64()),
        ("change_high", pa.float64()),
        ("n", pa.int64()),
        ("p_value", pa.float64()),
        ("adjusted_p", pa.float64()),
        ("seconds", pa.float64()),
        ("error", pa.string()),
        ("settings", pa.string()),
    ]
)
"""The columns. ``change`` is edited − original, of perplexity the ratio; ``adjusted_p`` is Holm's
over all units of the study with the same model, behaviour and metric. A unit without a result has
one row, without a metric."""


@dataclass(frozen=True)
class Results:
    """The results of a study, one row for each unit and metric, in the columns of the schema."""

    rows: tuple[Mapping[str, Any], ...]

    @property
    def arrow(self) -> Any:
        """The rows as an Arrow table."""
        return pa.Table.from_pylist(list(self.rows), schema=SCHEMA)

    def write_parquet(self, path: Path) -> None:
        """Write the rows as Parquet, whole or not at all.

        Raises:
            StorageError: the disk is full.
        """
        with atomic_file(path, replace=True) as file:
            parquet.write_table(self.arrow, file)

    def query(self, sql: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Return the columns and rows of a DuckDB query over the table ``results``.

        The query sees this table and nothing else: no files, no network.

        Raises:
            UsageError: the query is wrong; DuckDB's message says where.
        """
        import duckdb

        with duckdb.connect(":memory:") as connection:
            connection.register("results", self.arrow)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            try:
                answer = connection.execute(sql)
                columns = tuple(str(column[0]) for column in answer.description or ())
                return columns, answer.fetchall()
            except duckdb.Error as error:
                raise UsageError(f"--sql: {' '.join(str(error).split())}") from error


def results(study: str, units: Sequence[Recorded]) -> Results:
    """Return what ``units`` have found."""
    rows = [row for unit in units for row in _rows(study, unit)]
    _adjust(rows)
    blank = dict.fromkeys(SCHEMA.names)
    return Results(tuple({**blank, **row} for row in rows))


def _rows(study: str, unit: Recorded) -> list[dict[str, Any]]:
    spec = unit.entry.spec
    settings, component = spec["settings"], spec["component"] or {}
    is_edit = spec["component"] is None
    base: dict[str, Any] = {
        "study": study,
        "unit": unit.entry.id,
        "state": unit.state,
        "kind": "edit" if is_edit else "ablation",
        "name": spec["name"],
        "model": spec["model"],
        "behaviour": settings["behaviour"],
        "method": settings["method"] if is_edit else None,
        "seed": settings["seed"],
        "strength": settings["edit"]["strength"] if is_edit else None,
        "part": component.get("kind"),
        "replaced_by": spec["by"],
        **{name: component.get(name) for name in ("layer", "head", "first", "last")},
        "seconds": unit.seconds,
        "error": unit.error,
        "settings": json.dumps(settings, sort_keys=True) if is_edit else None,
    }
    if unit.result is None:
        return [base]
    return [{**base, **_numbers(row)} for row in unit.result["rows"]]


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    value, change, original = row["edited"], row["change"], row["original"]
    found = {
        "metric": row["key"],
        "unit_of_value": row["unit"],
        "original": None if original is None else original["value"],
        "p_value": row["p_value"],
        "n": value["n"],
        "value": value["value"],
        "value_low": value["interval"][0],
        "value_high": value["interval"][1],
    }
    if change is not None:
        low, high = change["interval"]
        found |= {"change": change["value"], "change_low": low, "change_high": high}
    return found


def _adjust(rows: list[dict[str, Any]]) -> None:
    """Put Holm's adjusted p-values in: one family for each model, behaviour and metric."""
    families: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        if row.get("p_value") is not None:
            family = (row["model"], row["behaviour"], row["metric"])
            families.setdefault(family, {})[row["unit"]] = row["p_value"]
    adjusted = {family: holm(values) for family, values in families.items()}
    for row in rows:
        if row.get("p_value") is not None:
            family = (row["model"], row["behaviour"], row["metric"])
            row["adjusted_p"] = adjusted[family][row["unit"]]
