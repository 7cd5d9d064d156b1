"""What a job wrote, put where the same command would have put it here."""

import shutil
from pathlib import Path

from obliteratus.errors import StorageError
from obliteratus.store.files import replace_folder


def waiting_folder(target: Path, job: str) -> Path:
    """Return the folder beside the target that files arrive in, until all are there."""
    return target / f".obliteratus-{job}.part"


def put_in_place(arrived: Path, target: Path, *, force: bool) -> list[Path]:
    """Move everything from ``arrived`` into ``target`` and return the new paths.

    Folders that exist on both sides are entered; what is new is renamed into place. ``arrived`` is
    gone afterwards.

    Raises:
        StorageError: a file is there already and ``force`` is false; nothing was moved.
    """
    moves = list(_moves(arrived, target))
    taken = [new for _, new in moves if new.exists()]
    if taken and not force:
        raise StorageError(
            f"{taken[0]} already exists here. What was fetched is in {arrived}; move it yourself, "
            "or attach again with --force."
        )
    for old, new in moves:
        if new.is_dir() and old.is_dir():
            replace_folder(old, new)
        else:
            new.parent.mkdir(parents=True, exist_ok=True)
            old.replace(new)
    shutil.rmtree(arrived, ignore_errors=True)
    return [new for _, new in moves]


def _moves(arrived: Path, target: Path) -> list[tuple[Path, Path]]:
    """Pair what is renamed with its new path: outputs, which hold files, and not their parents."""
    found: list[tuple[Path, Path]] = []
    for path in sorted(arrived.iterdir()):
        inside = list(path.iterdir()) if path.is_dir() else []
        if inside and all(each.is_dir() for each in inside) and (target / path.name).is_dir():
            found += _moves(path, target / path.name)
        else:
            found.append((path, target / path.name))
    return found
