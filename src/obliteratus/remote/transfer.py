"""Files there and back: sent by the hash of what they hold, fetched and checked by hash."""

import hashlib
import time
from pathlib import Path, PurePosixPath
from typing import Any

import asyncssh

from obliteratus.events import Progress, emit
from obliteratus.remote.errors import RemoteError
from obliteratus.store import sha256_of_file

BLOCK = 8 << 20  # bytes between two checks; several requests are under way inside a block
DIGITS = 16  # of a hash, in the name of a folder


def identity(path: Path) -> str:
    """Return sixteen hex digits of the hash of a file, or of a folder's files and their names."""
    if path.is_file():
        return sha256_of_file(path)[:DIGITS]
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()[:DIGITS]


async def send(sftp: asyncssh.SFTPClient, path: Path, target: PurePosixPath) -> None:
    """Send a file or a folder to ``target``; what was sent of it before is not sent again.

    A file is complete under its name or has the ending ``.part``.
    """
    files = [path] if path.is_file() else _files(path)
    total = sum(file.stat().st_size for file in files)
    start, done = time.perf_counter(), 0
    for file in files:
        size = file.stat().st_size
        there = target if path.is_file() else target / file.relative_to(path).as_posix()
        if not await sftp.exists(str(there)):
            await sftp.makedirs(str(there.parent), exist_ok=True)
            await _send_file(sftp, file, there)
        done += size
        emit(Progress(f"send {path.name}", done, max(total, 1), "bytes", _since(start)))


async def fetch(
    sftp: asyncssh.SFTPClient, source: str, manifest: dict[str, Any], folder: Path
) -> None:
    """Fetch the files of ``manifest`` (``{relative path: [bytes, sha256]}``) into ``folder``.

    What is there already, whole or in part, is kept; a file gets its name when its hash is right.

    Raises:
        RemoteError: a path leads out of ``folder``, or what arrived has another hash.
    """
    total = sum(size for size, _ in manifest.values())
    start, done = time.perf_counter(), 0
    for name, (size, sha256) in manifest.items():
        target = _inside(folder, name)
        if not (target.is_file() and sha256_of_file(target) == sha256):
            target.parent.mkdir(parents=True, exist_ok=True)
            await _fetch_file(sftp, f"{source}/{name}", target, size, sha256)
        done += size
        emit(Progress("fetch", done, max(total, 1), "bytes", _since(start)))


async def _send_file(sftp: asyncssh.SFTPClient, file: Path, target: PurePosixPath) -> None:
    part = f"{target}.part"
    begun = await sftp.getsize(part) if await sftp.exists(part) else 0
    offset = begun if begun is not None and begun <= file.stat().st_size else 0
    with file.open("rb") as local:
        local.seek(offset)
        async with sftp.open(part, "ab" if offset else "wb") as there:
            while block := local.read(BLOCK):
                await there.write(block, offset)
                offset += len(block)
    await sftp.posix_rename(part, str(target))


async def _fetch_file(
    sftp: asyncssh.SFTPClient, source: str, target: Path, size: int, sha256: str
) -> None:
    part = target.with_name(f"{target.name}.part")
    offset = part.stat().st_size if part.exists() else 0
    offset = offset if offset <= size else 0
    async with sftp.open(source, "rb") as there:
        with part.open("ab" if offset else "wb") as local:
            while offset < size:
                block = await there.read(min(BLOCK, size - offset), offset)
                if not block:
                    break
                local.write(block)
                offset += len(block)
    if sha256_of_file(part) != sha256:
        part.unlink()
        raise RemoteError(f"{source} did not arrive as it is there; fetch it again.")
    part.replace(target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _inside(folder: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RemoteError(f"the other machine names a file outside of its folder: {name!r}.")
    return folder.joinpath(*path.parts)


def _since(start: float) -> float:
    return time.perf_counter() - start
