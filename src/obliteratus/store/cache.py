"""The content-addressed cache: a folder per result, named by a hash of everything it depends on."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import platformdirs

from obliteratus.processes import from_first, is_first
from obliteratus.store.files import atomic_folder

T = TypeVar("T")
FORMAT = 2  # raise when the meaning of stored results changes: old entries are then not found
SECONDS_FILE = "seconds"


def default_root() -> Path:
    """Return the cache folder: ``$OBLITERATUS_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("OBLITERATUS_CACHE") or platformdirs.user_cache_dir("obliteratus"))


def content_key(kind: str, /, **parts: object) -> str:
    """Return ``kind-<hash>``, a name that is equal exactly when all ``parts`` are equal.

    ``parts`` must be JSON-ready: a tensor or a model is represented by its own hash.
    """
    text = json.dumps([FORMAT, kind, parts], sort_keys=True, allow_nan=False)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class Store:
    """Results on disk under :func:`content_key` names; an entry is complete or absent.

    ``saved`` is how many seconds the results that :meth:`cached` found have saved so far: what
    computing each took, with everything it was computed from, less what loading took.
    """

    def __init__(self, root: Path | None = None) -> None:
        """``root`` defaults to :func:`default_root`; it is created at the first write."""
        self.root = root or default_root()
        self.saved = 0.0

    def find(self, key: str) -> Path | None:
        """Return the folder of a finished entry, or None."""
        folder = self.root / key
        return folder if folder.is_dir() else None

    @contextlib.contextmanager
    def write(self, key: str) -> Generator[Path]:
        """Yield a folder to fill; it becomes the entry ``key`` when the block succeeds."""
        with atomic_folder(self.root / key, replace=True) as folder:
            yield folder

    def cached(
        self,
        key: str,
        compute: Callable[[], T],
        save: Callable[[T, Path], None],
        load: Callable[[Path], T],
    ) -> tuple[T, bool]:
        """Return the value under ``key`` and whether it was there already.

        A new value is computed, saved and returned as computed; ``load(folder)`` must give an
        equal value after ``save(value, folder)``. In a run of several processes all of them find it
        or all compute it, as the first one says, and that one saves it.
        """
        start, before = time.perf_counter(), self.saved
        if from_first(lambda: self.find(key) is not None):
            folder = self.root / key
            value = load(folder)
            took = float((folder / SECONDS_FILE).read_text(encoding="utf-8"))
            self.saved += took - (time.perf_counter() - start)
            return value, True
        value = compute()
        took = time.perf_counter() - start + self.saved - before
        if is_first():
            with self.write(key) as work:
                save(value, work)
                (work / SECONDS_FILE).write_text(repr(took), encoding="utf-8")
        return value, False
