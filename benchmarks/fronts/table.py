"""The table of all rows, for a page (Markdown) and for a machine (CSV)."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from fronts.rows import Row, dominators, in_order
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.formatting import shown

Stale = Callable[[Row], str]
HEADERS = (
    "method", "refused", "answered", "degenerate", "first-token KL", "KL along answers",
    "perplexity ratio", "n", "find", "edit", "verify", "dominated by", "row",
)  # fmt: skip
PAGE = """# Refusal against divergence

Made by `python benchmarks/pareto.py`; do not edit it by hand. The harmful test prompts are refused,
answered or degenerate (Wilson intervals); KL in nats on harmless test prompts, perplexity of
held-out text as a ratio (bootstrap intervals); all 95 %. *n*: harmful / harmless test prompts.
Minutes are those of finding the edit from nothing (what several rows begin with is computed once
and counted for each), of making and saving it, and of measuring the saved folder without the
original, which is measured once. *Dominated by* names the rows that are as low in
refusal and in first-token KL and lower in one of them, by their estimates; rows that are stale
(made with other settings or by other code) and rows that refuse more than the original are neither
dominated nor dominate.
"""


def markdown(rows: Sequence[Row], stale: Stale) -> str:
    """Return a page with one table for each model, and the errors of rows that failed."""
    parts = [PAGE]
    for model in dict.fromkeys(row.model for row in in_order(rows)):
        mine = [row for row in in_order(rows) if row.model == model]
        lines = [_line(HEADERS), _line(["---"] * len(HEADERS))]
        lines += [_line(_original(mine))] if any(row.measures for row in mine) else []
        lines += [_line(_cells(row, mine, stale)) for row in mine]
        parts.append("\n".join([f"## {model}", "", *lines, ""]))
        notes = [f"- {row.name}: {text}" for row in mine if (text := row.error or row.note)]
        parts += ["\n".join([*notes, ""])] if notes else []
    return "\n".join(parts)


def comma_separated(rows: Sequence[Row], stale: Stale) -> str:
    """Return all rows with plain numbers, every estimate with its bounds and n."""
    file = io.StringIO()
    records = [_record(row, rows, stale) for row in in_order(rows)]
    writer = csv.DictWriter(file, _columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def current(rows: Sequence[Row], stale: Stale) -> list[Row]:
    """Return the rows that may be compared with one another."""
    return [row for row in rows if row.measures is not None and not stale(row)]


def _cells(row: Row, rows: Sequence[Row], stale: Stale) -> list[str]:
    state = stale(row) or "current"
    if row.measures is None:
        return [row.name, *["–"] * 10, "–", f"failed; {state}" if stale(row) else "failed"]
    m = row.measures
    return [
        row.name,
        *(shown(each, "share") for each in (m.refusal, m.success, m.degenerate)),
        *(shown(each, "nats") for each in (m.kl_first, m.kl_sequence)),
        shown(m.perplexity, "ratio"),
        f"{m.refusal.n} / {m.kl_first.n}",
        *_minutes(row),
        ", ".join(_dominators(row, rows, stale)) or "–",
        state,
    ]


def _original(rows: Sequence[Row]) -> list[str]:
    found = next(row.measures for row in rows if row.measures is not None)
    return ["*original*", shown(found.original, "share"), *["–"] * (len(HEADERS) - 2)]


def _minutes(row: Row) -> list[str]:
    spent = row.seconds
    if spent is None:
        return ["–"] * 3
    return [f"{seconds / 60:.1f}" for seconds in (spent.find, spent.edit, spent.verify)]


def _dominators(row: Row, rows: Sequence[Row], stale: Stale) -> tuple[str, ...]:
    return () if stale(row) else dominators(row, current(rows, stale))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


ESTIMATES = ("refusal", "success", "degenerate", "kl_first", "kl_sequence", "perplexity")


def _columns() -> list[str]:
    bounds = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high", "_n")]
    times = ["minutes_find", "minutes_edit", "minutes_verify"]
    return ["model", "method", "tool", *bounds, *times, "dominated_by", "stale", "note", "error"]


def _record(row: Row, rows: Sequence[Row], stale: Stale) -> Mapping[str, object]:
    record: dict[str, object] = {"model": row.model, "method": row.name, "tool": row.tool}
    for name in ESTIMATES if row.measures is not None else ():
        estimate: Estimate = getattr(row.measures, name)
        low, high = estimate.interval
        record |= {
            name: estimate.value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": estimate.n,
        }  # fmt: skip
    for name in ("find", "edit", "verify") if row.seconds is not None else ():
        record[f"minutes_{name}"] = round(getattr(row.seconds, name) / 60, 2)
    found = " ".join(_dominators(row, rows, stale))
    rest = {"stale": stale(row), "note": row.note, "error": row.error or ""}
    return {**record, "dominated_by": found, **rest}
