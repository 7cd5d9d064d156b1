"""The rows of a data set in one DuckDB file of this machine, to be asked in SQL."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from obliteratus.community.contribution import DirectionFacts, as_bytes, parsed
from obliteratus.community.received import Received, Refused
from obliteratus.errors import StorageError, UsageError
from obliteratus.store import atomic_file, default_root

FILE = "rows.duckdb"
FORMAT = 1
"""Raise when a table changes: older files are then made anew from the Hub's cache."""
SIDES = ("original", "edited", "change")
TEXT, NUMBER, COUNT = pa.string(), pa.float64(), pa.int64()
RUNS = pa.schema(
    [
        ("sha256", TEXT),
        ("flags", pa.list_(TEXT)),
        *((name, TEXT) for name in ("kind", "method", "behaviour", "model", "revision", "source")),
        *((name, TEXT) for name in ("model_type", "dtype", "device", "day", "version")),
        *((name, COUNT) for name in ("layers", "d_model", "seed", "harmful", "deviations")),
        *((name, TEXT) for name in ("prompts", "weights", "verdict")),
        ("seconds", NUMBER),
        ("direction_method", TEXT),
        ("direction_rank", COUNT),
        ("depth", NUMBER),
        ("split_half_cosine", NUMBER),
        ("shared", TEXT),
        ("settings", TEXT),
        ("content", TEXT),
    ]
)
"""A row for each run. ``content`` is the whole file, ``flags`` what was seen in it, and ``depth``
behind which share of the blocks its directions were read."""
METRICS = pa.schema(
    [
        *((name, TEXT) for name in ("sha256", "metric", "unit")),
        ("n", COUNT),
        *((f"{side}{end}", NUMBER) for side in SIDES for end in ("", "_low", "_high")),
        ("p_value", NUMBER),
        ("adjusted_p", NUMBER),
    ]
)
"""A row for each run and metric, as ``runs export`` writes them."""
REFUSED = pa.schema([("path", TEXT), ("reason", TEXT)])


@dataclass(frozen=True)
class Pulled:
    """The rows of a data set at one commit; ``database`` is where they lie."""

    data_set: str
    commit: str
    rows: tuple[Received, ...]
    refused: tuple[Refused, ...]
    database: Path


def database_path(data_set: str) -> Path:
    """Return where the rows of ``data_set`` are kept, in the program's cache."""
    return default_root() / "community" / data_set.replace("/", "--") / FILE


def store_rows(
    data_set: str, commit: str, rows: Sequence[Received], refused: Sequence[Refused]
) -> Pulled:
    """Write rows to the database of ``data_set``, whole or not at all.

    Raises:
        StorageError: the disk is full, or the file cannot be written.
    """
    path = database_path(data_set)
    tables = {
        "runs": pa.Table.from_pylist([_run(row) for row in rows], schema=RUNS),
        "metrics": pa.Table.from_pylist(
            [each for row in rows for each in _metrics(row)], schema=METRICS
        ),
        "refused": pa.Table.from_pylist([_refused(each) for each in refused], schema=REFUSED),
        "about": pa.Table.from_pylist([{"data_set": data_set, "commit": commit, "format": FORMAT}]),
    }
    with atomic_file(path, replace=True) as file, duckdb.connect(str(file)) as connection:
        for name, table in tables.items():
            connection.register("given", table)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
            connection.unregister("given")
    return Pulled(data_set, commit, tuple(rows), tuple(refused), path)


def stored_rows(data_set: str) -> Pulled | None:
    """Return what was pulled of ``data_set``; None where nothing was, or another program did.

    Raises:
        StorageError: the file is damaged.
    """
    path = database_path(data_set)
    if not path.is_file():
        return None
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            about = connection.execute('SELECT "commit", format FROM about').fetchone()
            if about is None or about[1] != FORMAT:
                return None
            rows = connection.execute("SELECT content, flags FROM runs ORDER BY sha256").fetchall()
            refused = connection.execute("SELECT path, reason FROM refused").fetchall()
    except duckdb.Error as error:
        raise StorageError(
            f"{path} is damaged ({_first_line(error)}). Remove it and pull again."
        ) from error
    return Pulled(
        data_set,
        str(about[0]),
        tuple(Received(parsed(content.encode()), tuple(flags)) for content, flags in rows),
        tuple(Refused(*each) for each in refused),
        path,
    )


def ask(path: Path, sql: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the columns and rows that ``sql`` gives on a database of pulled rows.

    Nothing can be changed by it.

    Raises:
        UsageError: DuckDB refuses the query; its first line says why.
    """
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            found = connection.execute(sql)
            columns = tuple(column[0] for column in found.description or ())
            return columns, found.fetchall()
    except duckdb.Error as error:
        raise UsageError(
            f"DuckDB refused the query: {_first_line(error)}. The tables are runs, metrics and "
            "refused; `DESCRIBE runs` lists columns."
        ) from error


def _run(row: Received) -> Mapping[str, Any]:
    found = row.contribution
    results, facts = found.results, found.directions
    reliability = {} if facts is None else facts.reliability
    cosine = reliability.get("split_half_cosine")
    return {
        "sha256": found.sha256,
        "flags": list(row.flags),
        "kind": found.kind,
        "method": found.method,
        "behaviour": found.behaviour,
        "model": results.original.name,
        "revision": results.original.revision,
        "source": results.original.source,
        "model_type": results.original.model_type,
        "dtype": results.edited.dtype,
        "device": found.device,
        "day": found.day,
        "version": found.versions.get("obliteratus"),
        "layers": results.original.layers,
        "d_model": results.original.d_model,
        "seed": found.seed,
        "harmful": results.protocol.harmful,
        "deviations": found.deviations,
        "prompts": results.protocol.prompts,
        "weights": results.edited.weights,
        "verdict": results.verdict,
        "seconds": found.seconds.get("total"),
        "direction_method": None if facts is None else facts.method,
        "direction_rank": None if facts is None else facts.rank,
        "depth": _depth(facts, results.original.layers),
        "split_half_cosine": None if cosine is None else cosine.value,
        "shared": found.shared,
        "settings": json.dumps(found.model_dump(mode="json")["settings"], sort_keys=True),
        "content": as_bytes(found).decode(),
    }


def _depth(facts: DirectionFacts | None, layers: int) -> float | None:
    """Return behind which share of the blocks the directions were read."""
    layer = None if facts is None else facts.source_layer
    if layer is None:
        return None
    return 0.0 if layer == "embedding" else (layer + 1) / layers


def _metrics(row: Received) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for metric in row.contribution.results.metrics:
        estimates = {side: getattr(metric, side) for side in SIDES}
        values: dict[str, Any] = {
            "sha256": row.contribution.sha256,
            "metric": metric.key,
            "unit": metric.unit,
            "n": next(
                (each.n for each in (metric.edited, metric.change) if each is not None), None
            ),
            "p_value": metric.p_value,
            "adjusted_p": metric.adjusted_p,
        }
        for side, estimate in estimates.items():
            if estimate is not None:
                low, high = estimate.interval
                values |= {side: estimate.value, f"{side}_low": low, f"{side}_high": high}
        found.append(values)
    return found


def _refused(refused: Refused) -> dict[str, str]:
    return {"path": refused.name, "reason": refused.reason}


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
