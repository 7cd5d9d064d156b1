"""``obliteratus benchmark``: methods side by side on the same models and prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import Screen, rendering

if TYPE_CHECKING:
    from obliteratus.studies.benchmark import Benchmark

COLUMNS = ("model", "method", "refused", "first-token KL", "perplexity", "time", "")
DEFAULT_METHODS = "basic,advanced,aggressive"


def benchmark(
    *,
    models: Annotated[str, typer.Option("--models", metavar="A,B", help="Models, with commas.")],
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B", help="Methods, with commas.")
    ] = DEFAULT_METHODS,
    prompts: Annotated[
        int, typer.Option("--prompts", metavar="N", help="Test prompts of each class; 0 for all.")
    ] = 0,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, metavar="N", help="Units at a time.")
    ] = 1,
    assignments: options.Assignments = None,
    output: options.Output = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Edit each model by each method, measure all on the same test prompts, and compare them.

    A method beats another where it is surely lower in refusal or divergence and not higher in the
    other; what nobody beats is on the front. The same command goes on after a stop.
    """
    with rendering(as_json=as_json, quiet=quiet, stages=("study",), resumes=True) as screen:
        from obliteratus.settings import with_overrides
        from obliteratus.studies.benchmark import benchmark as run

        names = options.split_names(models) or []
        chosen = options.split_names(methods) or []
        folder = output or Path("out") / "benchmark"
        screen.title(f"benchmark {', '.join(names)} · {', '.join(chosen)} · to {folder}")
        common = with_overrides({}, assignments or [])
        found = run(names, chosen, folder, prompts=prompts, workers=workers, common=common)
        _show(screen, found, folder)
        screen.path(folder)
        screen.result(
            "benchmark",
            {
                "folder": str(folder),
                "candidates": [each.as_json() for each in found.candidates],
                "units": found.study.pace.counts,
            },
        )


def _show(screen: Screen, found: "Benchmark", folder: Path) -> None:
    from obliteratus.amounts import duration
    from obliteratus.cli.tables import listing, paragraph, table
    from obliteratus.studies.benchmark import TABLE_FILE
    from obliteratus.verify.formatting import shown

    rows = [
        (
            Path(each.model).name,
            each.method,
            shown(each.estimates.get("refusal_harmful"), "share"),
            shown(each.estimates.get("kl_first"), "nats"),
            shown(each.estimates.get("perplexity_heldout"), "ratio"),
            duration(each.seconds),
            f"beaten by {', '.join(each.beaten_by)}" if each.beaten_by else "front",
        )
        for each in found.candidates
    ]
    screen.say(table(COLUMNS, rows))
    alone = [(f"{Path(e.model).name}, {e.method}", e.alone) for e in found.candidates if e.alone]
    if alone:
        screen.say(listing("Measured one by one", "the others shared their batches", alone))
    failed = [
        (unit.entry.spec["name"], unit.error or "")
        for unit in found.study.units
        if unit.state == "failed"
    ]
    if failed:
        screen.say(listing("Failed", "", failed))
    screen.say(
        paragraph(
            "95 % intervals. Front: beaten by none. Beaten: another one is surely lower in refusal "
            "or divergence (the "
            "intervals do not meet) and not higher in the other. The time is what was left to do "
            "with the cache as it was."
        )
    )
    screen.say(f" Written to {folder / TABLE_FILE}; pictures beside it.\n")
