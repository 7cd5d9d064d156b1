"""The private environment on the other machine: this exact program with its pinned versions.

Two layers, because one changes with every line of code and the other weighs gigabytes: a virtual
environment with the libraries, named by their versions, and this program beside it, named by its
bytes. Each is made under another name and renamed when it is complete: two sessions, or a cut link,
leave no half of one.
"""

import shlex
import uuid
from pathlib import PurePosixPath

import asyncssh

from obliteratus.events import Note, emit
from obliteratus.remote.errors import RemoteError
from obliteratus.remote.link import output
from obliteratus.remote.machine import Machine
from obliteratus.remote.package import NAME, Package

NEEDED = 8_000_000_000  # bytes: torch with CUDA and its libraries take most of it
RENAME = "import os, sys; os.rename(*sys.argv[1:])"  # fails where another session was first
PIP = "-m pip --quiet --disable-pip-version-check"


def interpreter(machine: Machine, package: Package) -> str:
    """Return the path there of the interpreter that runs ``package`` with its libraries."""
    return str(_program(machine, package) / "python")


async def install(
    connection: asyncssh.SSHClientConnection, machine: Machine, package: Package
) -> str:
    """Install ``package`` and its libraries where they are not there yet; return the interpreter.

    Raises:
        RemoteError: the disk is too small, or pip fails.
    """
    program, libraries = _program(machine, package), _libraries(machine, package)
    async with connection.start_sftp_client() as sftp:
        if await sftp.exists(str(program)):
            return interpreter(machine, package)
        has_libraries = await sftp.exists(str(libraries))
        if not has_libraries and machine.free < NEEDED:
            raise RemoteError(
                f"{machine.free / 1e9:.1f} GB are free in {machine.root} there, and the program "
                f"with its libraries needs up to {NEEDED / 1e9:.0f} GB. Free some, or name another "
                "folder with --remote-dir."
            )
        part = PurePosixPath(f"{program}.{uuid.uuid4().hex[:8]}.part")
        await sftp.makedirs(str(part), exist_ok=True)
        await sftp.makedirs(str(libraries.parent), exist_ok=True)
        for filename, data in (
            (package.filename, package.wheel),
            ("constraints.txt", package.constraints.encode()),
            ("python", _wrapper(program, libraries).encode()),
        ):
            async with sftp.open(str(part / filename), "wb") as file:
                await file.write(data)
        await sftp.chmod(str(part / "python"), 0o755)
    if not has_libraries:
        emit(Note("Installing the libraries there, once for these versions; it takes minutes."))
        await _pip(connection, _make_libraries(machine, package, part, libraries))
    await _pip(connection, _make_program(machine, package, part, program, libraries))
    return interpreter(machine, package)


def _program(machine: Machine, package: Package) -> PurePosixPath:
    return PurePosixPath(machine.root) / "programs" / f"{package.identity}-py{machine.series}"


def _libraries(machine: Machine, package: Package) -> PurePosixPath:
    name = f"{package.libraries_identity}-py{machine.series}"
    return PurePosixPath(machine.root) / "environments" / name


def _wrapper(program: PurePosixPath, libraries: PurePosixPath) -> str:
    site = shlex.quote(str(program / "site"))
    python = shlex.quote(str(libraries / "bin" / "python"))
    return f'#!/bin/sh\nPYTHONPATH={site} exec {python} "$@"\n'


def _make_libraries(
    machine: Machine, package: Package, part: PurePosixPath, libraries: PurePosixPath
) -> str:
    quote, new = shlex.quote, f"{libraries}.{part.suffixes[-2].lstrip('.')}.part"
    python = f"{quote(new)}/bin/python"
    extras = f"[{','.join(package.extras)}]" if package.extras else ""
    return (
        f"{_sweep(libraries.parent)}; "
        f"{quote(machine.python)} -m venv {quote(new)} && "
        f"{python} {PIP} install --constraint {quote(str(part / 'constraints.txt'))} "
        f"{quote(f'{part / package.filename}{extras}')} && "
        f"{python} {PIP} uninstall --yes {NAME} && {_into_place(machine, new, libraries)}"
    )


def _make_program(
    machine: Machine,
    package: Package,
    part: PurePosixPath,
    program: PurePosixPath,
    libraries: PurePosixPath,
) -> str:
    quote = shlex.quote
    return (
        f"{_sweep(program.parent)}; "
        f"{quote(str(libraries))}/bin/python {PIP} install --no-deps --no-index "
        f"--target {quote(str(part / 'site'))} {quote(str(part / package.filename))} && "
        f"{_into_place(machine, str(part), program)}"
    )


def _sweep(folder: PurePosixPath) -> str:
    """Return a command that removes what sessions of other days left unfinished."""
    return (
        f"find {shlex.quote(str(folder))} -maxdepth 1 -name '*.part' -mtime +0 -exec rm -rf {{}} +"
    )


def _into_place(machine: Machine, part: str, target: PurePosixPath) -> str:
    """Return a command that renames ``part``, or drops it where ``target`` is there already."""
    quote = shlex.quote
    there = quote(str(target))
    return (
        f"{{ {quote(machine.python)} -c {quote(RENAME)} {quote(part)} {there} 2>/dev/null; "
        f"rm -rf {quote(part)}; test -d {there}; }}"
    )


async def _pip(connection: asyncssh.SSHClientConnection, script: str) -> None:
    try:
        await output(connection, ["sh", "-c", script])
    except RemoteError as error:
        reason = str(error).partition("failed there with ")[2]
        raise RemoteError(
            f"the program could not be installed there: {reason} Does that machine reach a package "
            "index? pip there takes PIP_INDEX_URL and its own configuration."
        ) from error
