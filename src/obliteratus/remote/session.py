"""One command on another machine, from the first look to the fetched results."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import asyncssh

from obliteratus.errors import StorageError
from obliteratus.events import Note, emit
from obliteratus.remote.address import Address
from obliteratus.remote.arrive import put_in_place, waiting_folder
from obliteratus.remote.environment import install
from obliteratus.remote.errors import RemoteError
from obliteratus.remote.follow import Follower, Hear, last_words
from obliteratus.remote.hostkeys import Ask
from obliteratus.remote.inputs import Request, rewritten
from obliteratus.remote.jobs import Job, as_sent, forget, new_job, remember
from obliteratus.remote.link import Link, agent
from obliteratus.remote.machine import look
from obliteratus.remote.package import Package, this_package
from obliteratus.remote.transfer import fetch, identity, send

T = TypeVar("T")
DEFAULT_ROOT = ".obliteratus"  # below the home folder there


@dataclass(frozen=True)
class Place:
    """Where to run: the machine, our folder on it, and its interpreter (None: one is found)."""

    address: Address
    root: str = DEFAULT_ROOT
    python: str | None = None


def submit(place: Place, wanted: Request, *, columns: int = 0, ask: Ask | None = None) -> Job:
    """Start a command on another machine and return at once; it goes on without us.

    ``columns`` is the width of the screen that will show its result; 0 where no person looks.

    Raises:
        StorageError: the output exists here and may not be replaced.
        RemoteError: the machine cannot be reached or lacks something.
        HostKeyError: its key is not trusted.
    """
    if wanted.output is not None and wanted.output.exists() and not wanted.force:
        raise StorageError(
            f"{wanted.output} already exists. Choose another --output, or pass --force."
        )
    return asyncio.run(_submit(place, wanted, this_package(), columns, ask))


def attach(job: Job, hear: Hear, *, ask: Ask | None = None) -> tuple[int, list[Path]]:
    """Hear a job's events from its first to its last, then fetch what it wrote.

    Returns its exit code and the paths of what was fetched. The job's folder there is removed.

    Raises:
        RemoteError: the machine cannot be reached, or the job ended without saying how.
        StorageError: something that it wrote exists here already.
    """
    return asyncio.run(_attach(job, hear, ask))


def cancel(job: Job, *, ask: Ask | None = None) -> None:
    """End a job and remove its folder there; finished stages stay in the cache there."""
    asyncio.run(_cancel(job, ask))


def is_running(job: Job, *, ask: Ask | None = None) -> bool:
    """Ask the machine whether the job is still running."""

    async def state(link: Link) -> bool:
        found = await link.persistently(lambda c: agent(c, job.python, "state", job.folder))
        return bool(found["lives"])

    return asyncio.run(_linked(job, ask, state))


async def _submit(
    place: Place, wanted: Request, package: Package, columns: int, ask: Ask | None
) -> Job:
    async with Link(place.address, ask=ask) as link:
        machine = await link.persistently(lambda c: look(c, place.root, place.python))
        emit(Note(f"{place.address}: {machine}."))
        python = await link.persistently(lambda c: install(c, machine, package))
        sent = await link.persistently(lambda c: _send_inputs(c, machine.root, wanted))
        target = Path.cwd()
        if wanted.output is not None and (
            wanted.output.is_absolute() or ".." in wanted.output.parts
        ):
            target = wanted.output.parent.resolve()
        words = rewritten(wanted.words, sent)
        job = new_job(place.address, machine.root, python, words, target, force=wanted.force)
        settings = {
            "OBLITERATUS_CACHE": str(PurePosixPath(machine.root) / "cache"),
            "OBLITERATUS_RUNS": str(PurePosixPath(machine.root) / "runs.sqlite"),
        }
        if columns:
            settings["OBLITERATUS_SCREEN_COLUMNS"] = str(columns)
        remember(job)  # before it starts: a job that nobody knows of could not be ended
        try:
            state = await link.persistently(lambda c: _start(c, job, as_sent(words, settings)))
        except RemoteError:
            forget(job)
            raise
        if not state["started"]:
            raise RemoteError(f"the job {job.name} did not start on {place.address}.")
    return job


async def _send_inputs(
    connection: asyncssh.SSHClientConnection, root: str, wanted: Request
) -> dict[Path, str]:
    sent: dict[Path, str] = {}
    async with connection.start_sftp_client() as sftp:
        for word in wanted.words:
            if word.path is not None and word.path not in sent:
                target = PurePosixPath(root) / "inputs" / identity(word.path) / word.path.name
                await send(sftp, word.path, target)
                sent[word.path] = str(target)
    return sent


async def _start(connection: asyncssh.SSHClientConnection, job: Job, what: bytes) -> dict[str, Any]:
    async with connection.start_sftp_client() as sftp:
        await sftp.makedirs(job.work, exist_ok=True)
        if not await sftp.exists(f"{job.folder}/started"):
            async with sftp.open(f"{job.folder}/job.json", "wb") as file:
                await file.write(what)
    return dict(await agent(connection, job.python, "start", job.folder))


async def _attach(job: Job, hear: Hear, ask: Ask | None) -> tuple[int, list[Path]]:
    async def follow(link: Link) -> tuple[int, list[Path]]:
        failed: list[dict[str, Any]] = []

        def listen(line: dict[str, Any]) -> None:
            failed.extend([line] if line.get("event") == "error" else [])
            hear(line)

        code = await Follower(link, job, listen).to_the_end()
        if code != 0 and not failed:
            said = await link.persistently(lambda c: last_words(c, job))
            hear({"event": "error", "message": _ended(code, said), "exit_code": 1})
        arrived = waiting_folder(Path(job.target), job.name)
        paths: list[Path] = []
        found = await link.persistently(lambda c: agent(c, job.python, "manifest", job.work))
        if found:
            arrived.mkdir(parents=True, exist_ok=True)
            await link.persistently(lambda c: _fetch(c, job, dict(found), arrived))
            paths = put_in_place(arrived, Path(job.target), force=job.force)
        await link.persistently(lambda c: _remove(c, job))
        forget(job)
        return code, paths

    return await _linked(job, ask, follow)


def _ended(code: int, said: str) -> str:
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    hint = " The system ends programs so when memory runs out." if code == -9 else ""
    words = f" Its last words: {said}" if said else ""
    return f"the program there was ended {how}.{hint}{words}"


async def _fetch(
    connection: asyncssh.SSHClientConnection, job: Job, found: dict[str, Any], arrived: Path
) -> None:
    async with connection.start_sftp_client() as sftp:
        await fetch(sftp, job.work, found, arrived)


async def _cancel(job: Job, ask: Ask | None) -> None:
    async def end(link: Link) -> None:
        state = await link.persistently(lambda c: agent(c, job.python, "cancel", job.folder))
        if state["lives"]:
            raise RemoteError(f"the job {job.name} does not end; look at it on {job.address}.")
        await link.persistently(lambda c: _remove(c, job))
        forget(job)

    await _linked(job, ask, end)


async def _remove(connection: asyncssh.SSHClientConnection, job: Job) -> None:
    async with connection.start_sftp_client() as sftp:
        if await sftp.exists(job.folder):
            await sftp.rmtree(job.folder)


async def _linked(job: Job, ask: Ask | None, work: Callable[[Link], Coroutine[Any, Any, T]]) -> T:
    async with Link(Address.parse(job.address), ask=ask) as link:
        return await work(link)


def forced(job: Job) -> Job:
    """Return the job as one that may replace what is there."""
    return replace(job, force=True)
