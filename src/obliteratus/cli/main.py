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
from typer.core import TyperGroup
from typing_extensions import override

from obliteratus import __version__
from obliteratus.cli import (
    analyze,
    behaviours,
    benchmark,
    chat,
    community,
    demo,
    detect,
    doctor,
    export,
    harden,
    inspect,
    methods,
    models,
    obliterate,
    probe,
    release,
    remote,
    runs,
    study,
    sweep,
    ui,
    verify,
)
from obliteratus.cli.errors import FAILURE, InterruptedRunError, report
from obliteratus.cli.options import NO_VALUE
from obliteratus.errors import UsageError
from obliteratus.processes import launched, leave

DEBUG_FLAG, DEBUG_VARIABLE = "--debug", "OBLITERATUS_DEBUG"
REMOTE_PANEL = "On another machine"
SHARED = ("probe", "verify")  # what several processes can do together
INTERRUPTED = 130  # what typer makes of Ctrl-C outside of a run; we report it as a failure
HELP = """Map, edit and verify how a language model refuses.

Begin with `obliteratus demo`, or with `obliteratus obliterate MODEL -o DIR`.
"""


class Commands(TyperGroup):
    """The commands, which ``--remote`` sends to another machine once they are parsed here."""

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` begin with; with ``--remote``, run it there and exit."""
        name, command, rest = super().resolve_command(ctx, args)
        given = ctx.params
        if launched() > 1 and name not in SHARED:
            raise UsageError(
                f"torchrun started {launched()} processes, and {name} runs in one: several share "
                f"the work of {' and '.join(SHARED)}. Start it without torchrun."
            )
        if given["address"] is not None and command is not None:
            while isinstance(command, TyperGroup) and rest and rest[0] in command.commands:
                name, command, rest = f"{name} {rest[0]}", command.commands[rest[0]], rest[1:]
            parsed = command.make_context(name, rest, parent=ctx)
            remote.run_there(
                given["address"],
                str(name),
                parsed,
                root=given["remote_dir"],
                python=given["remote_python"],
                detach=given["detach"],
            )
            raise typer.Exit
        return name, command, rest


app = typer.Typer(
    name="obliteratus",
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for panel, commands in {
    "Do": {
        "obliterate": obliterate.obliterate,
        "verify": verify.verify,
        "harden": harden.harden,
        "export": export.export,
        "demo": demo.demo,
        "ui": ui.ui,
    },
    "Look": {
        "inspect": inspect.inspect,
        "probe": probe.probe,
        "analyze": analyze.analyze,
        "detect": detect.detect,
        "chat": chat.chat,
        "sweep": sweep.sweep,
        "benchmark": benchmark.benchmark,
    },
    "List": {
        "models": models.models,
        "methods": methods.methods,
        "behaviours": behaviours.behaviours,
        "doctor": doctor.doctor,
    },
}.items():
    for name, function in commands.items():
        app.command(name, rich_help_panel=panel)(function)
app.add_typer(study.app, name="study", rich_help_panel="Do")
app.add_typer(release.app, name="release", rich_help_panel="Do")
app.add_typer(runs.app, name="runs", rich_help_panel="List")
app.add_typer(community.app, name="community", rich_help_panel="List")
app.add_typer(remote.app, name="remote", rich_help_panel="Do", no_args_is_help=True)


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
    address: Annotated[
        str | None,
        typer.Option(
            "--remote",
            metavar="ADDRESS",
            help="Run the command on another machine over SSH: user@host or user@host:port.",
            rich_help_panel=REMOTE_PANEL,
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            metavar=NO_VALUE,
            help="Return when it runs there; `obliteratus remote attach` fetches the results.",
            rich_help_panel=REMOTE_PANEL,
        ),
    ] = False,
    remote_dir: Annotated[
        str | None,
        typer.Option(
            "--remote-dir",
            metavar="DIR",
            help="The folder there for everything of ours; .obliteratus in the home if not given.",
            rich_help_panel=REMOTE_PANEL,
        ),
    ] = None,
    remote_python: Annotated[
        str | None,
        typer.Option(
            "--remote-python",
            metavar="PATH",
            help="The Python there, 3.11 or later; python3 if not given.",
            rich_help_panel=REMOTE_PANEL,
        ),
    ] = None,
) -> None:
    """Take the options that stand before the command."""
    del version, debug  # one acts by its callback, main() looks for the other in every place
    given = {"--detach": detach, "--remote-dir": remote_dir, "--remote-python": remote_python}
    for name, value in given.items():
        if value and address is None:
            raise UsageError(f"{name} goes with --remote ADDRESS.")


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
        leave()
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
