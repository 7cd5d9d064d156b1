"""A folder that takes hours to write and goes on where a killed process stopped."""

import contextlib
import shutil
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout

from obliteratus.errors import StorageError
from obliteratus.store.files import check_target, replace_folder, storage_error

JOB, LOCK = "job", "lock"


@contextlib.contextmanager
def resumable_folder(target: Path, job: str, *, replace: bool = False) -> Generator[Path]:
    """Yield a folder beside ``target`` that becomes ``target`` when the block succeeds.

    Whatever stops the block leaves the folder, named ``.<name>.part``, and the next call for the
    same ``job`` (a hash of all that determines the result) yields it again with what is in it; a
    call for another job begins with an empty one. Notes on progress may be kept in
    ``<folder>/.progress/``, which is removed at the end.

    Raises:
        StorageError: ``target`` exists and ``replace`` is false, another process is writing it, or
            the disk is full (what is there is kept, to go on when there is room).
    """
    check_target(target, replace=replace)
    work = target.parent / f".{target.name}.part"
    progress = work / ".progress"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.{LOCK}", timeout=0):
            if not _is_of(progress / JOB, job):
                shutil.rmtree(work, ignore_errors=True)
                progress.mkdir(parents=True)
                (progress / JOB).write_text(job, encoding="utf-8")
            yield work
            shutil.rmtree(progress)
            replace_folder(work, target)
    except Timeout as error:
        raise StorageError(
            f"another process is writing {target}. Wait for it, or choose another --output."
        ) from error
    except OSError as error:
        raise storage_error(
            error, target, kept=f"What is finished is kept in {work}: the same command goes on."
        ) from error
    (target.parent / f".{target.name}.{LOCK}").unlink(missing_ok=True)


def _is_of(record: Path, job: str) -> bool:
    return record.is_file() and record.read_text(encoding="utf-8") == job
