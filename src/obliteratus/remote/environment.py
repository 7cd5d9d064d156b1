"""The private environment on the other machine: this exact program with its pinned versions."""

import shlex
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath

import asyncssh

from obliteratus.events import Note, emit
from obliteratus.remote.errors import RemoteError
from obliteratus.remote.link import output
from obliteratus.remote.machine import Machine
from obliteratus.remote.package import Package

NEEDED = 8_000_000_000  # bytes: torch with CUDA and its libraries take most of it


@dataclass(frozen=True)
class Environment:
    """An environment that is complete; ``python`` is the path of its interpreter."""

    python: str


async def environment(
    connection: asyncssh.SSHClientConnection, machine: Machine, package: Package
) -> Environment:
    """Return the environment for ``package``, which is installed if it is not there.

    It is built under another name and renamed when it is complete, so that two sessions or a cut
    link leave no half of one.

    Raises:
        RemoteError: the disk is too small, or pip fails.
    """
    name = f"{package.identity}-py{'.'.join(machine.version.split('.')[:2])}"
    folder = PurePosixPath(machine.root) / "environments" / name
    python = str(folder / "bin" / "python")
    async with connection.start_sftp_client() as sftp:
        if await sftp.exists(python):
            return Environment(python)
        if machine.free < NEEDED:
            raise RemoteError(
                f"{machine.free / 1e9:.1f} GB are free in {machine.root} there, and the program "
                f"with its libraries needs up to {NEEDED / 1e9:.0f} GB. Free some, or name another "
                "folder with --remote-dir."
            )
        sent = PurePosixPath(machine.root) / "packages" / package.identity
        await sftp.makedirs(str(sent), exist_ok=True)
        await sftp.makedirs(str(folder.parent), exist_ok=True)
        for filename, data in (
            (package.filename, package.wheel),
            ("constraints.txt", package.constraints.encode()),
        ):
            async with sftp.open(str(sent / filename), "wb") as file:
                await file.write(data)
    emit(Note("Installing the program there, once for this version; this takes some minutes."))
    await _build(connection, machine.python, sent, package, folder)
    return Environment(python)


async def _build(
    connection: asyncssh.SSHClientConnection,
    python: str,
    sent: PurePosixPath,
    package: Package,
    folder: PurePosixPath,
) -> None:
    part = f"{folder}.{uuid.uuid4().hex[:8]}.part"
    quote = shlex.quote
    extras = f"[{','.join(package.extras)}]" if package.extras else ""
    what = f"{sent / package.filename}{extras}"
    rename = "import os, sys; os.rename(*sys.argv[1:])"  # fails where another session was first
    script = (
        f"find {quote(str(folder.parent))} -maxdepth 1 -name '*.part' -mtime +0 "
        "-exec rm -rf {} + ; "
        f"{quote(python)} -m venv {quote(part)} && "
        f"{quote(part)}/bin/python -m pip install --quiet --disable-pip-version-check "
        f"--constraint {quote(str(sent / 'constraints.txt'))} {quote(what)} && "
        f"{{ {quote(python)} -c {quote(rename)} {quote(part)} {quote(str(folder))}; "
        f"rm -rf {quote(part)}; test -x {quote(str(folder))}/bin/python; }}"
    )
    try:
        await output(connection, ["sh", "-c", script])
    except RemoteError as error:
        reason = str(error).partition("failed there with ")[2]
        raise RemoteError(
            f"the program could not be installed there: pip failed with {reason} Does that machine "
            "reach a package index? pip there takes PIP_INDEX_URL and its own configuration."
        ) from error
