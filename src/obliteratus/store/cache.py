"""The content-addressed cache: a folder per result, named by a hash of everything it depends on."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import platformdirs

from obliteratus.store.files import atomic_folder

T = TypeVar("T")
FORMAT = 1  # raise when the meaning of stored results changes: old entries are then not found


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
    """Results on disk under :func:`content_key` names; an entry is complete or absent."""

    def __init__(self, root: Path | None = None) -> None:
        """``root`` defaults to :func:`default_root`; it is created at the first write."""
        self.root = root or default_root()

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
        equal value after ``save(value, folder)``.
        """
        folder = self.find(key)
        if folder is not None:
            return load(folder), True
        value = compute()
        with self.write(key) as work:
            save(value, work)
        return value, False
