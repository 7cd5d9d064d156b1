"""``obliteratus runs``: the runs that were recorded on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from obliteratus.cli import options
from obliteratus.cli.render import rendering

NEWEST = 20  # runs in a list that was not asked for more
HELP_FLAGS = ("--help", "-h")


class ListsByDefault(TyperGroup):
    """A group whose ``list`` is meant where no command is named."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``list`` in front of flags that are not those of the group."""
        is_flag = not args or args[0].startswith("-")
        if is_flag and not set(args[:1]) & set(HELP_FLAGS):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ListsByDefault,
    help="The runs of this machine: list, show, compare, export and delete them.",
    pretty_exceptions_enable=False,
)
Identity = Annotated[
    str, typer.Argument(metavar="ID", help="A run's id, or how it begins.", show_default=False)
]
OfModel = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Models whose name has this in it.")
]
Method = Annotated[
    str | None, typer.Option("--method", "-m", metavar="NAME", help="Runs of this method.")
]
Behaviour = Annotated[
    str | None, typer.Option("--behaviour", metavar="NAME", help="Runs for this behaviour.")
]


@app.command("list")
def list_runs(
    *,
    of_model: OfModel = None,
    method: Method = None,
    behaviour: Behaviour = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, metavar="N", help="The newest; 0 for all.")
    ] = NEWEST,
    as_json: options.Json = False,
) -> None:
    """List the runs, the newest first."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.cli.records import show_list

        show_list(screen, of_model, method, behaviour, limit or None)


@app.command()
def show(run: Identity, *, as_json: options.Json = False) -> None:
    """Show one run: what was done, on what, how, and what came of it."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.cli.records import show_run

        show_run(screen, run)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run's id.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another's.", show_default=False)],
    *,
    as_json: options.Json = False,
) -> None:
    """Compare what two runs measured, prompt by prompt where both asked the same prompts."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.cli.records import show_comparison

        show_comparison(screen, first, second)


@app.command()
def export(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="These runs; all if none.", show_default=False),
    ] = None,
    *,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="parquet, csv, json or latex.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="runs.FORMAT if not given."),
    ] = None,
    of_model: OfModel = None,
    method: Method = None,
    behaviour: Behaviour = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write runs to a file: one row for each run and metric, or a LaTeX table."""
    with rendering(as_json=as_json, quiet=quiet, stages=()) as screen:
        from obliteratus.cli.records import write

        write(screen, runs or [], to, output, (of_model, method, behaviour), force=force)


@app.command()
def delete(run: Identity, *, as_json: options.Json = False) -> None:
    """Take one run out of the book. Its folder stays where it is."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.cli.records import remove

        remove(screen, run)
