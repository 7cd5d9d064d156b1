"""Files written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from obliteratus.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
READ_BYTES = 1 << 22  # 4 MiB: large enough that hashing, not system calls, is the cost


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON with sorted keys, so that equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StorageError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StorageError(f"{path} is not valid JSON ({error}).") from error


@contextlib.contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Generator[Path]:
    """Yield a temporary folder beside ``target`` that becomes ``target`` when the block succeeds.

    When the block raises, or the process is interrupted, the temporary folder is removed and
    ``target`` is as it was, with no new folders above it. A process that is killed leaves only a
    folder named ``.<name>.*.part``.

    Raises:
        StorageError: ``target`` exists and ``replace`` is false, or the disk is full (whatever the
            library that met it raises).
    """
    check_target(target, replace=replace)
    with _part_of(target) as work:
        yield work
        replace_folder(work, target)


@contextlib.contextmanager
def atomic_file(target: Path, *, replace: bool = False) -> Generator[Path]:
    """Yield the path of a temporary file that becomes ``target`` when the block succeeds.

    The block creates the file. Whatever stops it leaves ``target`` as it was, with no new folders
    above it, as :func:`atomic_folder` does.

    Raises:
        StorageError: ``target`` exists and ``replace`` is false, is a folder, or the disk is full.
    """
    check_target(target, replace=replace)
    if target.is_dir():
        raise StorageError(f"{target} is a folder. Choose another --output.")
    with _part_of(target) as work:
        file = work / target.name
        yield file
        file.replace(target)


@contextlib.contextmanager
def _part_of(target: Path) -> Generator[Path]:
    """Yield a temporary folder beside ``target``; it is gone when the block ends."""
    new = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        _remove_empty(new)
        raise storage_error(error, target) from error
    try:
        work.chmod(0o755)
        yield work
    except OSError as error:
        raise storage_error(error, target) from error
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise _disk_full(target) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _remove_empty(new)


def check_target(target: Path, *, replace: bool = False) -> None:
    """Check that ``target`` may be written, before hours of work go into it.

    Raises:
        StorageError: it exists and ``replace`` is false.
    """
    if target.exists() and not replace:
        raise StorageError(f"{target} already exists. Choose another --output, or pass --force.")


def is_disk_full(error: BaseException | None) -> bool:
    """Say whether ``error``, or what caused it, is that a disk or a quota is full.

    Libraries written in Rust (safetensors, tokenizers) raise exceptions of their own that give the
    system's number only in their text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in FULL):
            return True
        error = error.__cause__
    return False


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of ``folders``, the deepest first, that are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def replace_folder(work: Path, target: Path) -> None:
    """Rename ``work`` to ``target``; a folder that is there is removed only afterwards."""
    if not target.exists():
        work.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        target.rename(old / target.name)
        work.rename(target)
    finally:  # an interrupt between the two must not lose what was there
        if not target.exists():
            (old / target.name).rename(target)
        shutil.rmtree(old, ignore_errors=True)


def storage_error(
    error: OSError, target: Path, *, kept: str = "Nothing was left behind."
) -> StorageError:
    """Return what is wrong in writing ``target``; ``kept`` says what is left of it."""
    if is_disk_full(error):
        return _disk_full(target, kept)
    return StorageError(f"cannot write {target}: {os.strerror(error.errno or 0)} ({error}).")


def _disk_full(target: Path, kept: str = "Nothing was left behind.") -> StorageError:
    free = shutil.disk_usage(_existing_parent(target)).free / 1e9
    return StorageError(
        f"the disk that holds {target} is full ({free:.1f} GB free). {kept} Free some "
        "space, or choose another --output (or, for the cache, OBLITERATUS_CACHE)."
    )


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
