"""The SQLite file of a ledger: its tables, and how it is spoken of."""

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

from obliteratus.errors import StorageError
from obliteratus.store import database
from obliteratus.store.database import Kind

APPLICATION = 0x4F424C54  # "OBLT"
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE unit (
        id TEXT PRIMARY KEY,
        place INTEGER NOT NULL,
        kind TEXT NOT NULL,
        affinity TEXT NOT NULL,
        spec TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'waiting'
            CHECK (state IN ('waiting', 'running', 'finished', 'failed')),
        token INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        owner TEXT,
        claimed REAL,
        expires REAL,
        ended REAL,
        seconds REAL,
        result TEXT,
        error TEXT
    ) STRICT;
    CREATE INDEX unit_by_state ON unit (state, affinity, place);
    """,
)
"""From version i to i + 1 each."""


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open the ledger at ``path`` and bring it to this program's version.

    Raises:
        StorageError: there is no ledger (and none is to be made), or see
            :func:`obliteratus.store.database.connect`.
    """
    if not create and not path.is_file():
        raise StorageError(f"there is no study in {path.parent}: {path.name} is missing.")
    return database.connect(path, _kind())


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Generator[sqlite3.Cursor]:
    """Yield a cursor whose statements are all carried out when the block ends, or none."""
    with database.transaction(connection, path, _kind()) as cursor:
        yield cursor


@contextlib.contextmanager
def told(path: Path) -> Generator[None]:
    """Turn what SQLite raises inside the block into a sentence.

    Raises:
        StorageError: the disk is full, the file is no database, is damaged or stays locked.
    """
    with database.told(path, _kind()):
        yield


def _kind() -> Kind:
    return Kind(
        noun="study's ledger",
        application=APPLICATION,
        migrations=MIGRATIONS,
        kept="Finished units are kept: free some space, and the same command goes on",
        instead="Choose another --output",
    )
