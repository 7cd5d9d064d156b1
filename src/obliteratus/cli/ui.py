"""``obliteratus ui``: the laboratory in a browser."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering
from obliteratus.errors import UsageError

PORT, HOST = 7860, "127.0.0.1"


def ui(
    *,
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, metavar="N", help="0 takes a free one.")
    ] = PORT,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Anything but this machine needs --auth."),
    ] = HOST,
    auth: Annotated[
        str | None,
        typer.Option(
            "--auth",
            metavar="USER:PASSWORD",
            envvar="OBLITERATUS_UI_AUTH",
            help="What the page asks for; the environment keeps it out of the shell's history.",
        ),
    ] = None,
    workspace: Annotated[
        Path,
        typer.Option("--workspace", "-w", metavar="DIR", help="Where runs write, and are found."),
    ] = Path("out"),
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, metavar="N", help="Runs side by side, of other models.")
    ] = 1,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Open none.", metavar=options.NO_VALUE)
    ] = False,
) -> None:
    """Serve the laboratory to a browser on this machine, until Ctrl-C.

    Runs go on when the page is closed and when the server ends; it finds them again.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UsageError('the page needs gradio: pip install "obliteratus[ui]"')
    with rendering(stages=()) as screen:
        from obliteratus.ui.serve import checked, laboratory, launched

        place = checked(host, port, auth)
        with laboratory(workspace, at_once=jobs) as lab:
            screen.say(f" The laboratory is at {place.url}, its runs are in {lab.workspace}.\n")
            launched(lab, place, browser=not no_browser)
