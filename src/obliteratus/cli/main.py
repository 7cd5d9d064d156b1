"""``obliteratus``: the commands, and the edge where every failure becomes a sentence.

Nothing here imports torch: the commands import what they need when they run.
"""

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from obliteratus import __version__
from obliteratus.cli import (
    analyze,
    behaviours,
    chat,
    demo,
    detect,
    export,
    inspect,
    methods,
    models,
    obliterate,
    study,
    sweep,
    verify,
)
from obliteratus.cli.errors import FAILURE, InterruptedRunError, report
from obliteratus.cli.options import NO_VALUE

DEBUG_FLAG, DEBUG_VARIABLE = "--debug", "OBLITERATUS_DEBUG"
INTERRUPTED = 130  # what typer makes of Ctrl-C outside of a run; we report it as a failure
HELP = """Map, edit and verify how a language model refuses.

Begin with `obliteratus demo`, or with `obliteratus obliterate MODEL -o DIR`.
"""

app = typer.Typer(
    name="obliteratus",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for panel, commands in {
    "Do": {
        "obliterate": obliterate.obliterate,
        "verify": verify.verify,
        "export": export.export,
        "demo": demo.demo,
    },
    "Look": {
        "inspect": inspect.inspect,
        "analyze": analyze.analyze,
        "detect": detect.detect,
        "chat": chat.chat,
        "sweep": sweep.sweep,
    },
    "List": {
        "models": models.models,
        "methods": methods.methods,
        "behaviours": behaviours.behaviours,
    },
}.items():
    for name, function in commands.items():
        app.command(name, rich_help_panel=panel)(function)
app.add_typer(study.app, name="study", rich_help_panel="Do")


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"obliteratus {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            DEBUG_FLAG, metavar=NO_VALUE, help="Show the traceback of an error; may stand anywhere."
        ),
    ] = False,
) -> None:
    """Take the options that stand before the command."""
    del version, debug  # one acts by its callback, main() looks for the other in every place


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code: 0 done, 2 wrong request, 1 anything else.

    With ``arguments`` (tests, notebooks) the process is left as it is: no signal handlers, no
    warning filters.
    """
    if arguments is None:
        _prepare_process()
        arguments = sys.argv[1:]
    words = [word for word in arguments if word != DEBUG_FLAG]
    debug = len(words) < len(arguments) or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    with warnings.catch_warnings():
        if debug:
            warnings.resetwarnings()
        return _run(words, debug=debug)


def _run(words: Sequence[str], *, debug: bool) -> int:
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(args=list(words), prog_name="obliteratus", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as ended:  # typer, when the reader of our output is gone
        return FAILURE if ended.code else 0
    except Exception as error:  # noqa: BLE001 - the edge of the program (style.md 4)
        return report(error, debug=debug)
    if code == INTERRUPTED:
        return report(InterruptedRunError("Stopped; nothing was written."), debug=debug)
    return code if isinstance(code, int) else 0


def _prepare_process() -> None:
    """Let the system end us as Ctrl-C does, and keep library chatter off the screen."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # --debug shows them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode is no reason to stop
    for name in ("SIGTERM", "SIGHUP"):  # SIGHUP does not exist everywhere
        with contextlib.suppress(AttributeError, ValueError):
            number = getattr(signal, name)
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
                signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
