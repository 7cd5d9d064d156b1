"""What the commands of ``obliteratus study`` show."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from obliteratus.amounts import significant
from obliteratus.cli.render import Screen
from obliteratus.cli.tables import listing, paragraph, table
from obliteratus.errors import UsageError, did_you_mean
from obliteratus.events import Note, StageFinished, StageStarted, emit
from obliteratus.settings import with_overrides
from obliteratus.studies.ledger import Ledger, Recorded
from obliteratus.studies.pace import pace
from obliteratus.studies.presets import presets, study_named
from obliteratus.studies.reading import study_of
from obliteratus.studies.results import results
from obliteratus.studies.run import in_short, progress_of
from obliteratus.studies.schema import Study

SHOWN = 12  # ablations in a table; --json and the Parquet file have all of them
SQL_ROWS = 200
SECONDS_BETWEEN_LOOKS = 2.0
IDLE_LOOKS = 3  # with nobody at a unit, after which nobody is taken to be working
REFUSAL, LANGUAGE = ("log_odds_harmful", "refusal_harmful"), "perplexity_heldout"


def chosen_study(name: str, models: Sequence[str], assignments: Sequence[str]) -> Study:
    """Return the study of a file or preset with what the command line puts in.

    Raises:
        UsageError: see the readers, or an assignment is wrong.
    """
    study = study_named(name)
    values = study.model_dump(mode="json")
    if models:
        values["models"] = list(models)
    if assignments:
        values["common"] = with_overrides(values["common"], assignments)
    return study_of(values, name)


def show_presets(screen: Screen, name: str | None) -> str:
    """List all presets, or return one as YAML, which is printed as it is and not folded."""
    found = {preset.name: preset for preset in presets()}
    if name is not None:
        if name not in found:
            raise UsageError(f"no preset called '{name}'.{did_you_mean(name, found)}")
        screen.result("study presets", {"presets": [found[name].study.model_dump(mode="json")]})
        return found[name].text
    screen.result(
        "study presets", {"presets": [p.study.model_dump(mode="json") for p in found.values()]}
    )
    rows = [
        (each.name, str(each.study.prompts), _does(each.study), each.study.question)
        for each in found.values()
    ]
    screen.say(
        table(("preset", "prompts", "units", "question"), rows, numbers=frozenset({"prompts"}))
    )
    screen.say(
        paragraph(
            "`obliteratus study run NAME MODEL` runs one; `obliteratus study presets NAME` prints "
            "it to begin a file of your own with. Prompts are of each class; more than the test "
            "pairs are rewrites of them, with intervals over the pairs."
        )
    )
    return ""


def _does(study: Study) -> str:
    ablated = [f"{each.part} by {each.by}" for each in study.ablations]
    count = len(study.methods) * len(study.settings) * len(study.seeds)
    edits = [f"{count} edit{'s' if count > 1 else ''}"] if count else []
    return ", ".join([*edits, *ablated])


def show_folder(screen: Screen, folder: Path, sql: str | None) -> None:
    """Show a study on disk, or the answer to a query.

    Raises:
        StorageError: there is no study in ``folder``.
        UsageError: the query is wrong.
    """
    with Ledger(folder) as ledger:
        study = Study.model_validate(ledger.facts()["study"])
        seen = ledger.units()
    if sql is None:
        show_study(screen, study, seen, folder)
        stands = pace(seen, workers=1)
        rows = results(study.name, seen).rows
        screen.result("study show", {"units": stands.counts, "results": list(rows)})
        return
    columns, rows = results(study.name, seen).query(sql)
    shown = [tuple(_cell(value) for value in row) for row in rows[:SQL_ROWS]]
    rest = f" (the first {SQL_ROWS} of {len(rows)} rows)" if len(rows) > SQL_ROWS else ""
    screen.say(table(columns, shown, title=rest.strip() or None))
    answer = [dict(zip(columns, row, strict=True)) for row in rows]
    screen.result("study show", {"rows": answer})


def show_study(screen: Screen, study: Study, units: Sequence[Recorded], folder: Path) -> None:
    """Show the question, where the study stands, and what edits and ablations did."""
    found = results(study.name, units)
    facts = [("units", in_short(pace(units, workers=1))), ("folder", str(folder))]
    screen.say(listing(study.name, study.question, facts))
    pairs = dict.fromkeys((row["model"], row["behaviour"]) for row in found.rows)
    for model, behaviour in pairs:
        mine = [r for r in found.rows if (r["model"], r["behaviour"]) == (model, behaviour)]
        title = f"{model}, {behaviour}"
        for kind, name in (("edit", "edits"), ("ablation", "taken out one at a time")):
            rows = [row for row in mine if row["kind"] == kind and row["metric"]]
            if rows:
                _show_units(screen, rows, f"{title}: {name}", kind)
    failed = [
        (unit.entry.spec["name"], unit.error or "") for unit in units if unit.state == "failed"
    ]
    if failed:
        screen.say(listing("Failed", "--retry-failed tries them again", failed[:SHOWN]))


def _show_units(screen: Screen, rows: Sequence[Mapping[str, Any]], title: str, kind: str) -> None:
    """Show a line for each unit: its metrics side by side, the largest loss of refusal first."""
    units: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        units.setdefault(row["unit"], {})[row["metric"]] = row
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    first = next((name for name in (*REFUSAL, LANGUAGE) if name in metrics), metrics[0])
    order = sorted(units.values(), key=lambda unit: _change(unit.get(first)))
    shown = order[:SHOWN] if kind == "ablation" else order
    lines = [
        (
            next(iter(unit.values()))["name"],
            *(_figure(unit.get(metric)) for metric in metrics),
            _least_p(unit),
        )
        for unit in shown
    ]
    more = f" ({SHOWN} of {len(order)}, by {first})" if len(shown) < len(order) else ""
    columns = ("unit", *metrics, "least p, adjusted")
    screen.say(table(columns, lines, title=f"{title}{more}", numbers=frozenset(columns[1:])))


def _change(row: Mapping[str, Any] | None) -> float:
    if row is None:
        return float("inf")
    found = row["change"] if row["change"] is not None else row["value"]
    return float(found)


def _figure(row: Mapping[str, Any] | None) -> str:
    """Return the change with its interval, of perplexity the ratio; of a divergence its value."""
    if row is None:
        return "–"
    names = ("change", "change_low", "change_high")
    if row["change"] is None:
        names = ("value", "value_low", "value_high")
    value, low, high = (significant(float(row[name])) for name in names)
    sign = "×" if row["unit_of_value"] == "perplexity" and row["change"] is not None else ""
    return f"{sign}{value} ({low} to {high})"


def _least_p(unit: Mapping[str, Mapping[str, Any]]) -> str:
    found = [row["adjusted_p"] for row in unit.values() if row["adjusted_p"] is not None]
    return significant(min(found)) if found else "–"


def watch_folder(screen: Screen, folder: Path) -> None:
    """Follow the ledger in ``folder`` until nothing is left, or nobody works on it.

    Raises:
        StorageError: there is no study in ``folder``.
    """
    start, idle, workers = time.perf_counter(), 0, 1
    with Ledger(folder) as ledger:
        study = Study.model_validate(ledger.facts()["study"])
        screen.title(f"study {study.name} in {folder}")
        emit(StageStarted("study", study.question))
        while True:
            seen = ledger.units(with_results=False)
            running = sum(unit.state == "running" for unit in seen)
            workers = max(running, 1)
            stands = pace(seen, workers=workers)
            elapsed = time.perf_counter() - start
            emit(progress_of(stands, elapsed))
            if stands.done == stands.total:
                break
            idle = 0 if running else idle + 1
            if idle >= IDLE_LOOKS:
                emit(Note("nobody works on it: run the same `study run` again to go on."))
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    emit(StageFinished("study", time.perf_counter() - start, in_short(stands)))
    screen.result("study watch", {"units": stands.counts})


def _cell(value: object) -> str:
    if isinstance(value, float):
        return significant(value)
    return "–" if value is None else str(value)
