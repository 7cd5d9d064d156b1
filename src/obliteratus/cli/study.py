"""``obliteratus study``: many units of work from one file, and what they have found."""

from pathlib import Path
from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.errors import FAILURE
from obliteratus.cli.render import rendering

app = typer.Typer(
    help="Run studies: many edits and ablations from one YAML file, kept in a ledger.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a study.", show_default=False)
]


def _preset_names(incomplete: str) -> list[str]:
    from obliteratus.studies.presets import presets

    return [preset.name for preset in presets() if preset.name.startswith(incomplete)]


@app.command()
def run(
    study: Annotated[
        str,
        typer.Argument(
            metavar="FILE|PRESET",
            help="A YAML file, or a preset of `obliteratus study presets`.",
            show_default=False,
            autocompletion=_preset_names,
        ),
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Models, instead of those of the study.", show_default=False
        ),
    ] = None,
    *,
    workers: Annotated[
        int, typer.Option("--workers", "-w", min=1, help="Units at a time.", metavar="N")
    ] = 1,
    engine: Annotated[
        str,
        typer.Option("--engine", help="What runs them: local, or ray for a cluster.", metavar="E"),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="With ray: auto, or the cluster's host:port; a new one here if not given.",
            metavar="ADDRESS",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try failed units again.", metavar=options.NO_VALUE),
    ] = False,
    assignments: options.Assignments = None,
    output: options.Output = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Do every unit of a study that is not done yet; the same command goes on after a stop.

    A unit that fails keeps its error and does not stop the others; the exit code is then 1.
    """
    with rendering(as_json=as_json, quiet=quiet, stages=("study",), resumes=True) as screen:
        from obliteratus.cli.studies import chosen_study, show_study
        from obliteratus.studies.run import run_study

        chosen = chosen_study(study, models or [], assignments or [])
        folder = output or Path("out") / f"study-{chosen.name}"
        screen.title(f"study {chosen.name} · {', '.join(chosen.models)} · to {folder}")
        done = run_study(
            chosen,
            folder,
            workers=workers,
            engine=engine,
            address=address,
            retry_failed=retry_failed,
        )
        show_study(screen, chosen, done.units, folder)
        screen.path(done.folder)
        screen.result(
            "study run",
            {"folder": str(done.folder), "seconds": done.seconds, "units": done.pace.counts},
        )
    if done.pace.counts["failed"]:
        raise typer.Exit(FAILURE)


@app.command()
def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Print this one as YAML, to begin a file of your own with.",
            show_default=False,
            autocompletion=_preset_names,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the studies that come with the program, each with the question that it answers."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.cli.studies import show_presets

        text = show_presets(screen, name)
        if text and not as_json:
            typer.echo(text, nl=False)


@app.command()
def show(
    folder: Folder,
    *,
    sql: Annotated[
        str | None,
        typer.Option("--sql", help="A DuckDB query over the table `results`.", metavar="QUERY"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show what a study has found so far, also while it runs; with --sql ask it anything."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.cli.studies import show_folder

        show_folder(screen, folder, sql)


@app.command()
def watch(
    folder: Folder,
    *,
    as_json: options.Json = False,
) -> None:
    """Follow a study that another process runs, with the time that it still takes."""
    with rendering(as_json=as_json, stages=("study",)) as screen:
        from obliteratus.cli.studies import watch_folder

        watch_folder(screen, folder)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study file, for an editor that completes and checks YAML."""
    import json

    from obliteratus.studies.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
