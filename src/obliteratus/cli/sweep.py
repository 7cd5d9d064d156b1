"""``obliteratus sweep``: what the strength of an edit does, as a curve."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from obliteratus.studies.sweep import Sweep

from obliteratus.cli import options
from obliteratus.cli.obliterate import DEFAULT_METHOD
from obliteratus.cli.render import Screen, rendering
from obliteratus.errors import UsageError

RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")
COLUMNS = ("strength", "refusal", "log-odds", "KL", "perplexity", "similarity")


def sweep(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ],
    *,
    strengths: Annotated[
        str,
        typer.Option(
            "--strengths",
            metavar="LOW..HIGH",
            help="Multiples of the method's strengths: 0 is the original, 1 the edit.",
        ),
    ] = "-1..2",
    points: Annotated[
        int, typer.Option("--points", metavar="N", help="Strengths to measure; 0 is one.")
    ] = 13,
    prompts: Annotated[
        int,
        typer.Option("--prompts", metavar="N", help="Select prompts of each class; 0 for all."),
    ] = 0,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", metavar="NAME", help=f"{DEFAULT_METHOD} if not given."),
    ] = None,
    behaviour: options.BehaviourName = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    output: options.Output = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the edit of a method on MODEL at many strengths, with one model in memory.

    The first strengths are even, the others go where a curve bends. Everything is measured on
    select prompts, so that the test prompts are still unseen when a strength has been chosen.
    """
    flags = options.settings(
        behaviour=behaviour,
        seed=seed,
        model=options.section(dtype=dtype),
        prompts=options.section(harmful=harmful, harmless=harmless),
    )
    with rendering(
        as_json=as_json, quiet=quiet, stages=("summon", "probe", "distill"), resumes=True
    ) as screen:
        from obliteratus.cli.main_job import default_output
        from obliteratus.pipeline.methods import settings_for
        from obliteratus.studies.sweep import sweep as run

        low, high = between(strengths)
        settings = settings_for(method or DEFAULT_METHOD, assignments or [], flags)
        output = output or default_output(model, "sweep")
        screen.title(f"sweep {model} · {settings.method} · {low:g} to {high:g} · to {output}")
        found = run(
            model,
            output,
            settings,
            low=low,
            high=high,
            points=points,
            prompts=prompts,
            force=force,
        )
        _show(screen, found, output)
        screen.path(output)
        screen.result("sweep", {"folder": str(output), **found.as_json()})


def between(text: str) -> tuple[float, float]:
    """Read ``-1..2``.

    Raises:
        UsageError: it has another form.
    """
    found = RANGE.fullmatch(text.replace(" ", ""))
    if found is None:
        raise UsageError(f"--strengths {text} is no range; write the two ends, such as -1..2.")
    return float(found[1]), float(found[2])


def _show(screen: Screen, found: "Sweep", output: Path) -> None:
    from obliteratus.amounts import duration
    from obliteratus.cli.tables import paragraph, table
    from obliteratus.studies.sweep import CURVES, PICTURE_FILE, UNITS
    from obliteratus.verify.formatting import shown

    rows = [
        (f"{point.strength:g}", *(shown(point.curve(key), UNITS[key]) for key in CURVES))
        for point in found.points
    ]
    screen.say(table(COLUMNS, rows))
    screen.say(
        paragraph(
            f"{found.prompts} select prompts of each class, 95 % intervals. 0 is the original, 1 "
            f"the method's own strength ({found.strengths}). Log-odds are the change of the mean, "
            "perplexity its ratio, similarity that of harmless answers to the original's."
        )
    )
    screen.say(f" Written to {output / PICTURE_FILE} in {duration(found.seconds)}.\n")
