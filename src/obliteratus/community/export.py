"""Recorded runs as a table for other programs: Parquet, CSV, JSON and LaTeX."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from obliteratus.community.book import Run
from obliteratus.errors import UsageError, did_you_mean
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.words import Unit, number, ratio
from obliteratus.store import atomic_file

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "kind", "state")),
        ("started", pa.timestamp("s", tz="UTC")),
        ("seconds", pa.float64()),
        *((name, pa.string()) for name in ("model", "revision", "source", "method", "behaviour")),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in ("device", "dtype", "version", "prompts", "error")),
        *((name, pa.string()) for name in ("metric", "unit_of_value")),
        ("n", pa.int64()),
        *(
            (f"{name}{end}", pa.float64())
            for name in ("original", "edited", "change")
            for end in ("", "_low", "_high")
        ),
        ("p_value", pa.float64()),
        ("adjusted_p", pa.float64()),
        ("settings", pa.string()),
    ]
)
"""The columns. ``change`` is edited − original, of perplexity the ratio; intervals are those of
95 %. A run without results has one row, without a metric."""
LATEX_METRICS: tuple[tuple[str, str, Unit], ...] = (
    ("refusal_harmful", "refused", "share"),
    ("kl_first", "first-token KL", "nats"),
    ("perplexity_heldout", "perplexity", "perplexity"),
)
RAISED, PLAIN = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"
ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{each: f"\\{each}" for each in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "·": r"$\cdot$",
        **{raised: f"$^{plain}$" for raised, plain in zip(RAISED, PLAIN, strict=True)},
    }
)


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row for each run and metric, in the columns of :data:`SCHEMA`."""
    blank = dict.fromkeys(SCHEMA.names)
    return [{**blank, **row} for run in runs for row in _rows(run)]


def export(runs: Sequence[Run], path: Path, format_: str, *, force: bool = False) -> None:
    """Write ``runs`` to ``path`` as ``parquet``, ``csv``, ``json`` or ``latex``, whole or not.

    Raises:
        UsageError: there is no such format.
        StorageError: the file exists (without ``force``), or the disk is full.
    """
    if format_ not in WRITERS:
        raise UsageError(f"no format called '{format_}'.{did_you_mean(format_, WRITERS)}")
    with atomic_file(path, replace=force) as file:
        WRITERS[format_](runs, file)


def latex(runs: Sequence[Run]) -> str:
    r"""Return a booktabs table of the runs with results: three metrics with their intervals.

    It needs ``\usepackage{booktabs}``. Everything that is text is escaped.
    """
    heads = ["model", "method", *(head for _, head, _ in LATEX_METRICS), "$n$"]
    lines = [
        r"\begin{tabular}{ll" + "r" * (len(LATEX_METRICS) + 1) + "}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(
            f"{' & '.join(_latex_cells(run))} \\\\"
            for run in runs
            if run.record.results is not None
        ),
        r"\bottomrule",
        r"\end{tabular}",
        r"% Parentheses hold 95\,% intervals; perplexity is the change in the edited model.",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return ``text`` with everything that LaTeX would take for a command made harmless."""
    return text.translate(ESCAPED)


def _latex_cells(run: Run) -> list[str]:
    results = run.record.results
    assert results is not None
    cells = [escaped(run.short_name), escaped(run.record.method or "–")]
    count = ""
    for key, _, unit in LATEX_METRICS:
        metric = results.metric(key)
        estimate = None
        if metric is not None:
            estimate = metric.change if unit == "perplexity" else metric.edited
        cells.append(escaped(_cell(estimate, unit)))
        if key == LATEX_METRICS[0][0] and estimate is not None:
            count = str(estimate.n)
    return [*cells, count]


def _cell(estimate: Estimate | None, unit: Unit) -> str:
    if estimate is None:
        return "–"
    if unit == "perplexity":
        return ratio(estimate)
    low, high = (number(end, unit).removesuffix(" %") for end in estimate.interval)
    return f"{number(estimate.value, unit)} ({low} to {high})"


def _rows(run: Run) -> list[dict[str, Any]]:
    record, results = run.record, run.record.results
    base: dict[str, Any] = {
        "id": run.id,
        "kind": record.kind,
        "state": run.standing,
        "started": datetime.datetime.fromtimestamp(int(run.started), datetime.UTC),
        "seconds": record.seconds.get("total"),
        "model": run.short_name,
        "method": record.method,
        "behaviour": record.behaviour,
        "seed": record.seed,
        "device": record.hardware.device,
        "version": record.versions.get("obliteratus"),
        "error": record.error,
        "settings": json.dumps(record.settings, sort_keys=True),
    }
    if results is None:
        return [base]
    base |= {
        "revision": results.original.revision,
        "source": results.original.source,
        "dtype": results.edited.dtype,
        "prompts": results.protocol.prompts,
    }
    found: list[dict[str, Any]] = []
    for metric in results.metrics:
        estimates = {name: getattr(metric, name) for name in ("original", "edited", "change")}
        row = base | {
            "metric": metric.key,
            "unit_of_value": metric.unit,
            "n": next((e.n for e in (metric.edited, metric.change) if e is not None), None),
            "p_value": metric.p_value,
            "adjusted_p": metric.adjusted_p,
        }
        for name, estimate in estimates.items():
            row |= _ends(name, estimate)
        found.append(row)
    return found


def _ends(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    low, high = estimate.interval
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def _table(runs: Sequence[Run]) -> Any:
    return pa.Table.from_pylist(rows_of(runs), schema=SCHEMA)


def _write_json(runs: Sequence[Run], file: Path) -> None:
    rows = [{**row, "started": row["started"].isoformat()} for row in rows_of(runs)]
    file.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_parquet(runs: Sequence[Run], file: Path) -> None:
    parquet.write_table(_table(runs), file)


def _write_csv(runs: Sequence[Run], file: Path) -> None:
    csv.write_csv(_table(runs), file)


def _write_latex(runs: Sequence[Run], file: Path) -> None:
    file.write_text(latex(runs), encoding="utf-8")


WRITERS: Mapping[str, Callable[[Sequence[Run], Path], None]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
    "json": _write_json,
    "latex": _write_latex,
}
