"""What the commands of ``obliteratus runs`` show."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obliteratus.community.comparison import Compared

from obliteratus.amounts import duration, significant
from obliteratus.cli.render import Screen
from obliteratus.cli.tables import listing, pairs, paragraph, table
from obliteratus.community.book import Run, opened_book
from obliteratus.community.record import Metric
from obliteratus.community.words import label
from obliteratus.errors import UsageError, did_you_mean
from obliteratus.settings import RunSettings
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.words import (
    VERDICT_WORDS,
    p_value,
    percent_change,
    ratio,
    shown,
    signed,
)

ID_SHOWN = 8
COLUMNS = ("id", "when", "command", "model", "method", "refused", "first-token KL", "took", "")
METRICS = ("", "original", "edited", "change", "p, adjusted")
ENDINGS = {"latex": "tex"}


def show_list(
    screen: Screen, model: str | None, method: str | None, behaviour: str | None, limit: int | None
) -> None:
    """List runs, the newest first."""
    with opened_book() as book:
        found = book.runs(model=model, method=method, behaviour=behaviour, limit=limit)
        path = book.path
    screen.result("runs list", {"book": str(path), "runs": [as_json(run) for run in found]})
    if not found:
        screen.say(f" No run is recorded in {path} that fits.\n")
        return
    screen.say(table(COLUMNS, [_line(run) for run in found], numbers=frozenset({"took"})))
    screen.say(
        paragraph(
            "95 % intervals. `obliteratus runs show ID` shows one, `obliteratus runs compare A B` "
            "compares two; the beginning of an id is enough."
        )
    )


def show_run(screen: Screen, text: str) -> None:
    """Show one run in full."""
    with opened_book() as book:
        run = book.find(text)
    screen.result("runs show", as_json(run))
    record, local = run.record, run.local
    facts = [
        ("model", local.model),
        ("edited", local.edited or ""),
        ("method", record.method or ""),
        ("behaviour", record.behaviour or ""),
        ("seed", "" if record.seed is None else str(record.seed)),
        ("folder", local.folder or ""),
        ("began", _when(run.started)),
        ("took", _took(run)),
        ("stages", ", ".join(f"{name} {duration(s)}" for name, s in _stages(run))),
        ("on", _machine(run)),
        ("with", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("not as asked", str(record.deviations) if record.deviations else ""),
        *((name, significant(value)) for name, value in record.numbers.items()),
        ("error", f"{record.error}: {local.sentence}" if record.error else ""),
    ]
    screen.say(listing(run.id, f"{record.kind}, {run.standing}", [f for f in facts if f[1]]))
    results = record.results
    if results is not None:
        rows = [_metric(metric) for metric in results.metrics]
        title = f"{VERDICT_WORDS[results.verdict]}; {results.protocol.harmful} prompts of a class"
        screen.say(table(METRICS, rows, title=title, numbers=frozenset(METRICS[1:])))
        screen.say(paragraph("Parentheses hold 95 % intervals; p is Holm's."))
    defaults = dict(_leaves(RunSettings().model_dump(mode="json")))
    settings = [
        (key, _text(value))
        for key, value in record.settings.items()
        if key not in defaults or value != defaults[key]
    ]
    if settings:
        screen.say(" Settings other than the defaults", pairs(settings))


def show_comparison(screen: Screen, first: str, second: str) -> None:
    """Compare two runs and show which of their quantities differ."""
    with opened_book() as book:
        one, two = book.find(first), book.find(second)
    if one.id == two.id:
        raise UsageError(f"'{first}' and '{second}' are one run; give another one to compare with.")
    from obliteratus.community.comparison import compare_runs

    found = compare_runs(one.record, two.record)
    screen.result(
        "runs compare",
        {
            "first": one.id,
            "second": two.id,
            "differ_in": list(found.differ_in),
            "rows": [
                {
                    "key": row.key,
                    "unit": row.unit,
                    "first": row.first.as_json(),
                    "second": row.second.as_json(),
                    "difference": row.difference.as_json(),
                    "is_paired": row.is_paired,
                    "test": row.test,
                    "p_value": row.p_value,
                    "adjusted_p": row.adjusted_p,
                }
                for row in found.rows
            ],
        },
    )
    names = [f"{run.record.method or run.record.kind} {run.id[:ID_SHOWN]}" for run in (one, two)]
    columns = ("", *names, "difference", "p, adjusted", "")
    screen.say(table(columns, [_compared(row) for row in found.rows]))
    notes = [
        f"The difference is {names[1]} − {names[0]}, of perplexity the ratio. Paired: prompt by "
        "prompt. Unpaired: as of two independent measurements, with a wider interval and no test."
    ]
    if found.differ_in:
        notes.append(
            f"The two were measured with another {_joined(found.differ_in)}; what depends on that "
            "is not paired, and differs for that reason too."
        )
    if one.record.results and two.record.results:
        sources = {
            each.record.results.original.source for each in (one, two) if each.record.results
        }
        if len(sources) > 1:
            notes.append("They are edits of different models.")
    for note in notes:
        screen.say(paragraph(note))


def write(
    screen: Screen,
    ids: Sequence[str],
    to: str,
    output: Path | None,
    filters: tuple[str | None, str | None, str | None],
    *,
    force: bool,
) -> None:
    """Write runs to a file."""
    from obliteratus.community.export import WRITERS, export

    if to not in WRITERS:
        raise UsageError(f"no format called '{to}'.{did_you_mean(to, WRITERS)}")
    model, method, behaviour = filters
    with opened_book() as book:
        if ids:
            runs = [book.find(each) for each in ids]
        else:
            runs = list(book.runs(model=model, method=method, behaviour=behaviour))
    if not runs:
        raise UsageError("no recorded run fits, so there is nothing to export.")
    path = output or Path(f"runs.{ENDINGS.get(to, to)}")
    export(runs, path, to, force=force)
    screen.say(f" {len(runs)} runs written to {path}.\n")
    screen.path(path)
    screen.result("runs export", {"file": str(path), "runs": len(runs)})


def remove(screen: Screen, text: str) -> None:
    """Take a run out of the book."""
    with opened_book() as book:
        identity = book.identity(text)
        book.forget(identity)
    screen.say(f" {identity} is deleted from {book.path}; what it wrote stays.\n")
    screen.result("runs delete", {"id": identity})


def as_json(run: Run) -> dict[str, Any]:
    """Return a run as a JSON-ready mapping."""
    return {
        "id": run.id,
        "state": run.standing,
        "started": run.started,
        "ended": run.ended,
        "record": run.record.model_dump(mode="json"),
        "local": run.local.model_dump(mode="json"),
    }


def _line(run: Run) -> tuple[str, ...]:
    record, results = run.record, run.record.results
    refusal = None if results is None else results.metric("refusal_harmful")
    divergence = None if results is None else results.metric("kl_first")
    return (
        run.id[:ID_SHOWN],
        time.strftime("%m-%d %H:%M", time.localtime(run.started)),
        record.kind,
        run.short_name,
        record.method or "–",
        shown(None if refusal is None else refusal.edited, "share"),
        shown(None if divergence is None else divergence.edited, "nats"),
        _took(run) or "–",
        "" if run.standing == "finished" else run.standing,
    )


def _metric(metric: Metric) -> tuple[str, ...]:
    return (
        label(metric.key),
        shown(metric.original, metric.unit),
        shown(metric.edited, metric.unit),
        _change(metric),
        p_value(metric.adjusted_p),
    )


def _change(metric: Metric) -> str:
    found = metric.change
    if found is None:
        return "–"
    return ratio(found) if metric.unit == "perplexity" else _signed(found, metric)


def _signed(found: Estimate, row: "Metric | Compared") -> str:
    low, high = (signed(end, row.unit).removesuffix(" %") for end in found.interval)
    return f"{signed(found.value, row.unit)} ({low} to {high})"


def _compared(row: "Compared") -> tuple[str, ...]:
    is_ratio = row.unit == "ratio"
    sides = [
        percent_change(each.value) if is_ratio else shown(each, row.unit)
        for each in (row.first, row.second)
    ]
    return (
        label(row.key),
        *sides,
        ratio(row.difference) if is_ratio else _signed(row.difference, row),
        p_value(row.adjusted_p),
        f"paired, n {row.difference.n}" if row.is_paired else "unpaired",
    )


def _stages(run: Run) -> list[tuple[str, float]]:
    return [(name, spent) for name, spent in run.record.seconds.items() if name != "total"]


def _took(run: Run) -> str:
    return "" if run.ended is None else duration(run.record.seconds.get("total", 0.0))


def _machine(run: Run) -> str:
    found = run.record.hardware
    dtype = "" if run.record.results is None else f", {run.record.results.original.dtype}"
    return (
        f"{found.device}{dtype}; {found.cores} cores, {found.threads} threads, "
        f"{found.memory_gib:g} GiB; {found.system} {found.machine}"
    )


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _leaves(settings: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings by dotted key, as a record has them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", tuple(value) if isinstance(value, list) else value


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _joined(words: Sequence[str]) -> str:
    plain = [word.removeprefix("the ") for word in words]
    return plain[0] if len(plain) == 1 else f"{', '.join(plain[:-1])} and {plain[-1]}"
