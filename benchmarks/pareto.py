"""Every method against every other, and against heretic: refusal, divergence, perplexity, minutes.

    python benchmarks/pareto.py
    python benchmarks/pareto.py --models smollm2-refuser --methods basic tuned heretic

A finished row is not run again, so the command goes on where it was stopped; rows that were made
with other settings or by other code are called stale in the table until --fresh runs them (and rows
that failed) again. Each method runs as a user runs it, in a process of its own, and heretic (see
benchmarks/heretic.py) in its own virtual environment; the same verifier measures every saved folder
on the same test prompts. Only small records are kept, and nothing that a model said.

OUT/table.md, OUT/table.csv, OUT/pareto.png and .svg, and the same over the KL along whole answers
in OUT/pareto-sequence.png and .svg; OUT/MODEL/METHOD/ holds the records of a row.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import heretic
from fronts.picture import pareto
from fronts.rows import (
    SCORING,
    Divergence,
    Key,
    Row,
    Seconds,
    load_row,
    load_rows,
    row_key,
    save_row,
    staleness,
)
from fronts.runs import Place, obliterate, verify
from fronts.table import comma_separated, current, markdown

from obliteratus.errors import MeasurementError, ObliteratusError, UsageError, did_you_mean
from obliteratus.pictures.style import as_png, as_svg
from obliteratus.pipeline.methods import methods, settings_for
from obliteratus.settings import RunSettings

MODELS = ("qwen2.5-coder-0.5b", "smollm2-refuser")
HERETIC = ("heretic", "heretic-mild")
ONE_DIRECTION = "arditi"  # the rows that differ in the norm that is kept and in nothing else
TRIALS = "kernel-search"  # the same search as heretic's, with as many trials
SHORTER: Mapping[str, tuple[str, ...]] = {"cone": ("distill.rdo.steps=10",)}
"""Rows that take hours as the preset has them, and what is set for the table instead."""
WIDER: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("smollm2-refuser", "leace"): ("distill.max_kl=0.5",)
}
"""Rows for which no direction passes the gates of the preset on that model, and a wider gate."""
NORMS = ("none", "frobenius", "column", "row")
BASE = (
    "verify.random_controls=0",
    "verify.dose=false",
    "verify.over_refusal=0",
    "verify.coherence=false",
)
"""What no column shows is not measured; --set comes after and may ask for it."""
PICTURES: dict[str, Divergence] = {"pareto": "kl_first", "pareto-sequence": "kl_sequence"}


@dataclass(frozen=True)
class Plan:
    """What the command was asked for."""

    root: Path
    assignments: tuple[str, ...]
    options: heretic.Options
    fresh: bool = False
    keep_weights: bool = False
    heretic_venv: Path | None = None

    def settings(self, model: str, name: str) -> RunSettings:
        """Return the settings of a model's row (``name`` is of :func:`names`, not heretic's)."""
        method, assignments = self.method(model, name)
        return settings_for(method, assignments)

    def method(self, model: str, name: str) -> tuple[str, list[str]]:
        """Return the preset behind a row, and everything that is set on top of it."""
        instead = instead_of_preset(model, name)
        own: list[str] = []
        if name.startswith("norm-"):
            name, own = ONE_DIRECTION, [f"edit.norm={name.removeprefix('norm-')}"]
        elif name == TRIALS:
            own = [f"distill.kernel.trials={self.options.trials}"]
        return name, [*BASE, *own, *instead, *self.assignments]

    def key(self, model: str, name: str) -> Key | None:
        """Return today's key of a row, or None when nothing has that name."""
        if name in HERETIC:
            scored = self.settings(model, ONE_DIRECTION)
            used = {part: scored.model_dump(mode="json")[part] for part in ("verify", "prompts")}
            settings = {"model": model, "heretic": heretic.settings(self.options), **used}
            return row_key(settings, packages=SCORING)
        if name not in names():
            return None
        return row_key({"model": model, **self.settings(model, name).model_dump(mode="json")})

    def stale(self, row: Row) -> str:
        """Return what of ``row`` is not as it would be made today; empty when it is current."""
        return staleness(row, self.key(row.model, row.name))

    def is_done(self, model: str, name: str) -> bool:
        """Say whether a row need not be run: it is there, and --fresh does not ask for it."""
        row = load_row(Place(self.root, model, name).folder)
        if row is None:
            return False
        return not (self.fresh and (self.stale(row) or row.error is not None))


def names() -> tuple[str, ...]:
    """Return every row of a model: the presets, one direction under each norm, heretic."""
    return (
        *(method.name for method in methods()),
        *(f"norm-{norm}" for norm in NORMS),
        HERETIC[0],
    )


def instead_of_preset(model: str, name: str) -> tuple[str, ...]:
    """Return what a row sets otherwise than its preset, which its note says."""
    return (*SHORTER.get(name, ()), *WIDER.get((model, name), ()))


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing, and write the table and the pictures after every row."""
    arguments = _arguments(words)
    plan = Plan(
        root=arguments.output,
        assignments=tuple(arguments.set),
        options=heretic.Options(
            trials=arguments.trials,
            fit_prompts=arguments.heretic_fit,
            harmful_prompts=arguments.heretic_harmful,
            harmless_prompts=arguments.heretic_harmless,
        ),
        fresh=arguments.fresh,
        keep_weights=arguments.keep_weights,
        heretic_venv=arguments.heretic_venv,
    )
    try:
        for name in arguments.methods:
            if name not in names():
                raise UsageError(f"no row called '{name}'.{did_you_mean(name, names())}")
        for row in run(plan, arguments.models, arguments.methods):
            print(f"{row.model:20} {row.name:16} {_in_short(row)}", flush=True)
            write(plan)
        write(plan)
    except ObliteratusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(plan: Plan, models: Sequence[str], chosen: Sequence[str]) -> Iterator[Row]:
    """Run the rows that are missing (or, with ``plan.fresh``, stale or failed) and yield them."""
    for model in models:
        for name in chosen:
            if plan.is_done(model, name):
                continue
            for row in rows_of(plan, model, name):
                save_row(row, Place(plan.root, model, row.name).folder)
                yield row


def rows_of(plan: Plan, model: str, name: str) -> list[Row]:
    """Make the row called ``name``; of heretic one or two trials are worth a row.

    What another row of the model did with the same settings and code is not done twice.
    """
    key = plan.key(model, name)
    assert key is not None
    if name in HERETIC:
        return heretic_rows(plan, model, key)
    place = Place(plan.root, model, name)
    for row in load_rows(plan.root):
        if (row.model, row.key) == (model, key) and row.measures is not None:
            place.folder.mkdir(parents=True, exist_ok=True)
            return [row.model_copy(update={"name": name, "note": f"the run of {row.name}"})]
    method, assignments = plan.method(model, name)
    row = obliterate(place, key, method, assignments, keep_weights=plan.keep_weights)
    if instead := instead_of_preset(model, name):
        row = row.model_copy(update={"note": f"with {', '.join(instead)}; {row.note}".rstrip("; ")})
    return [row]


def heretic_rows(plan: Plan, model: str, key: Key) -> list[Row]:
    """Let heretic search, and score what it saved; a failure is a row as well."""
    work = plan.root / ".heretic" / Path(model).name / key.settings[:16]
    for name in HERETIC:
        shutil.rmtree(Place(plan.root, model, name).folder, ignore_errors=True)
    bare = Row(model=model, name=HERETIC[0], tool="heretic", key=key)
    try:
        program = heretic.environment(plan.heretic_venv)
        prompts = plan.settings(model, ONE_DIRECTION).prompts
        found = heretic.search(program, model, work, plan.options, prompts)
    except MeasurementError as error:
        Place(plan.root, model, HERETIC[0]).folder.mkdir(parents=True, exist_ok=True)
        return [bare.model_copy(update={"error": str(error)})]
    rows: list[Row] = []
    for name, trial in found.trials.items():
        spent = Seconds(find=found.find_seconds, edit=found.save_seconds[name], verify=0)
        note = f"{trial.text}; {found.note}"
        row = bare.model_copy(update={"name": name, "seconds": spent, "note": note})
        place = Place(plan.root, model, name)
        rows.append(verify(place, row, found.saved[name], [*BASE, *plan.assignments]))
        if not plan.keep_weights:
            shutil.rmtree(found.saved[name])
    return rows


def write(plan: Plan) -> None:
    """Write the table of all rows below the output, and the pictures of those that are current."""
    rows = load_rows(plan.root)
    if not rows:
        return
    (plan.root / "table.md").write_text(markdown(rows, plan.stale), encoding="utf-8")
    (plan.root / "table.csv").write_text(comma_separated(rows, plan.stale), encoding="utf-8")
    shown = current(rows, plan.stale)
    for name, by in PICTURES.items() if shown else ():
        picture = pareto(shown, by)
        (plan.root / f"{name}.png").write_bytes(as_png(picture))
        (plan.root / f"{name}.svg").write_text(as_svg(picture), encoding="utf-8")


def _in_short(row: Row) -> str:
    if row.measures is None or row.seconds is None:
        return f"failed: {row.error}"
    return (
        f"{100 * row.measures.refusal.value:5.1f} % refused, KL {row.measures.kl_first.value:.3f}, "
        f"{row.seconds.total / 60:.1f} min"
    )


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL")
    parser.add_argument("--methods", nargs="+", default=names(), metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path, default=Path("out") / "pareto")
    parser.add_argument("--fresh", action="store_true", help="run stale and failed rows again")
    parser.add_argument("--keep-weights", action="store_true")
    defaults = heretic.Options()
    parser.add_argument(
        "--trials", type=int, default=defaults.trials, help=f"of heretic and {TRIALS}"
    )
    for word, count in (
        ("fit", defaults.fit_prompts),
        ("harmful", defaults.harmful_prompts),
        ("harmless", defaults.harmless_prompts),
    ):
        parser.add_argument(
            f"--heretic-{word}", type=int, default=count, metavar="N", help="of its prompts"
        )
    parser.add_argument("--heretic-venv", type=Path, metavar="DIR", help="with heretic installed")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
