"""``--remote`` before a command, and ``obliteratus remote``: jobs on other machines."""

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.text import Text

from obliteratus.cli import options
from obliteratus.cli.errors import InterruptedRunError
from obliteratus.cli.render import Screen, rendering
from obliteratus.cli.tables import table
from obliteratus.errors import UsageError
from obliteratus.events import emit, from_json

COLUMNS = ("job", "where", "started", "command")
MISSING = (
    "--remote needs the package asyncssh. Install it with `pip install 'obliteratus[remote]'`."
)
DETACHED = "It goes on there; `obliteratus remote attach {0}` shows it and fetches the results."
OWN = ("event", "command")  # keys of a result's line that the screen writes itself
JobName = Annotated[str, typer.Argument(metavar="JOB", help="As `remote list` names it.")]

app = typer.Typer(help="Jobs that --remote started: see them, fetch them, end them.")


def run_there(
    address: str,
    name: str,
    context: Any,
    *,
    root: str | None,
    python: str | None,
    detach: bool,
) -> None:
    """Run a parsed command on another machine and show it as if it ran here.

    Raises:
        UsageError: the address is malformed, or the command is not for other machines.
    """
    _needs_asyncssh()
    from obliteratus.remote.address import Address
    from obliteratus.remote.inputs import request
    from obliteratus.remote.session import DEFAULT_ROOT, Place, submit

    where = Place(Address.parse(address), root or DEFAULT_ROOT, python)
    wanted = request(name, context)
    as_json, quiet = (bool(context.params.get(each)) for each in ("as_json", "quiet"))
    with rendering(as_json=as_json, quiet=quiet) as screen:
        columns = 0 if as_json or quiet else screen.console.width
        job = submit(where, wanted, columns=columns, ask=_ask(as_json or quiet))
        if not detach:
            screen.title(f"{name} · on {where.address} · job {job.name}")
            _show(screen, job)
            return
        screen.say(f" Job {job.name}. " + DETACHED.format(job.name))
        screen.path(job.name)
        screen.result("remote", {"job": job.name, "address": job.address})


@app.command("attach")
def attach(
    job: JobName,
    *,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show JOB from its beginning, wait for its end, and fetch what it wrote."""
    _needs_asyncssh()
    from obliteratus.remote.jobs import find
    from obliteratus.remote.session import forced

    with rendering(as_json=as_json, quiet=quiet) as screen:
        found = find(job)
        _show(screen, forced(found) if force else found)


@app.command("cancel")
def cancel(job: JobName, *, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """End JOB and remove its folder there. What it had finished stays in the cache there."""
    _needs_asyncssh()
    from obliteratus.remote.jobs import find
    from obliteratus.remote.session import cancel as end

    with rendering(as_json=as_json, quiet=quiet) as screen:
        found = find(job)
        end(found, ask=_ask(as_json or quiet))
        screen.say(f" {found.name} has ended.")
        screen.result("remote", {"job": found.name, "cancelled": True})


@app.command("list")
def list_jobs(*, as_json: options.Json = False) -> None:
    """List the jobs that were started from here and whose results were not fetched yet."""
    from obliteratus.remote.jobs import known_jobs

    with rendering(as_json=as_json) as screen:
        jobs = known_jobs()
        rows = [
            (
                job.name,
                job.address,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)),
                " ".join(job.words),
            )
            for job in jobs
        ]
        screen.say(table(COLUMNS, rows) if rows else " No job is waiting to be fetched.")
        screen.result(
            "remote", {"jobs": [{"job": job.name, "address": job.address} for job in jobs]}
        )


def _show(screen: Screen, job: Any) -> None:
    from obliteratus.remote.errors import RemoteRunError, RemoteUsageError
    from obliteratus.remote.session import attach as follow

    failures: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def hear(line: dict[str, Any]) -> None:
        kind = line.get("event")
        if kind == "error":
            failures.append(line)
        elif kind in ("result", "said"):
            results.append(line)
        elif (event := from_json(line)) is not None:
            emit(event)

    try:
        code, paths = follow(job, hear, ask=_ask(not sys.stdin.isatty()))
    except KeyboardInterrupt as interrupt:
        raise InterruptedRunError(
            f"Stopped watching; {job.name} goes on there. `obliteratus remote attach {job.name}` "
            f"goes on here, `obliteratus remote cancel {job.name}` ends it."
        ) from interrupt
    if code != 0:
        last = failures[-1]
        kind = RemoteUsageError if last.get("exit_code") == UsageError.exit_code else RemoteRunError
        raise kind(str(last["message"]))
    for line in results:
        if line["event"] == "said":
            screen.say(Text.from_ansi(line["text"].rstrip("\n")))
        else:
            screen.result(line["command"], {k: v for k, v in line.items() if k not in OWN})
    for path in paths:
        screen.path(path)


def _ask(nobody: bool) -> Callable[[str], bool] | None:
    """Return a way to ask on the terminal, or None where nobody can answer."""
    if nobody or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    return lambda question: typer.confirm(question, default=False, err=True)


def _needs_asyncssh() -> None:
    import importlib.util

    if importlib.util.find_spec("asyncssh") is None:
        raise UsageError(MISSING)
