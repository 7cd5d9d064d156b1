"""A released folder as one zip file, for places that take a single file."""

import zipfile
from pathlib import Path

from obliteratus.errors import UsageError
from obliteratus.events import track
from obliteratus.store import atomic_file


def archive(folder: Path, output: Path, *, force: bool = False) -> int:
    """Write every file of ``folder`` into the zip ``output``, and return how many there are.

    Nothing is compressed: weights do not get smaller, and it would take minutes.

    Raises:
        UsageError: ``folder`` holds no model, or ``output`` lies inside of it.
        StorageError: ``output`` is there already and not to be replaced.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no model. Give a folder that `obliterate` wrote.")
    if output.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{output} lies inside the folder that it would hold; write it elsewhere.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with (
        atomic_file(output, replace=force) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as found,
    ):
        for path in track(files, task="pack", total=len(files), unit="files"):
            found.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return len(files)
