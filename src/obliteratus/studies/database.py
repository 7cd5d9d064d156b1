"""The SQLite file of a ledger: opened, migrated, and its failures told in words."""

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

from obliteratus.errors import ObliteratusError, StorageError

APPLICATION = (
    0x4F424C54  # "OBLT" in the header of the file: no other database is taken for a ledger
)
BUSY_SECONDS = 60.0  # a transaction takes milliseconds; a disk under load can take seconds
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
"""From version i to i + 1 each; ``PRAGMA user_version`` counts those that were carried out."""


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open the ledger at ``path`` and bring it to this program's version.

    WAL lets readers look while a worker writes; with ``synchronous=FULL`` what was committed is on
    the disk, also after a loss of power. A WAL needs a local disk: no network file system.

    Raises:
        StorageError: there is no ledger (and none is to be made), the file is no ledger, it is of
            a newer version, or the disk is full.
    """
    if not create and not path.is_file():
        raise StorageError(f"there is no study in {path.parent}: {path.name} is missing.")
    with told(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Generator[sqlite3.Cursor]:
    """Yield a cursor whose statements are all carried out when the block ends, or none.

    The write lock is taken at once, so that what is read inside is still so when it is written.
    """
    with told(path):
        cursor = connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield cursor
            cursor.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled it back already
                cursor.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def told(path: Path) -> Generator[None]:
    """Turn what SQLite raises inside the block into a sentence.

    Raises:
        StorageError: the disk is full, the file is no database, is damaged or stays locked.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _storage_error(path, error) from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    is_new = version == 0 and not _pragma(connection, "page_count")
    if not is_new and application != APPLICATION:
        raise StorageError(f"{path} is a database, but no study's ledger. Choose another --output.")
    if version > len(MIGRATIONS):
        raise StorageError(
            f"{path} is a ledger of version {version}, and this program knows versions up to "
            f"{len(MIGRATIONS)}. Update obliteratus; nothing was changed."
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if version < len(MIGRATIONS):
        _migrate(connection, path)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Carry out the migrations that are missing; another process may be doing the same."""
    with transaction(connection, path) as cursor:
        version = _pragma(connection, "user_version")
        for script in MIGRATIONS[version:]:
            for statement in script.split(";"):
                if statement.strip():
                    cursor.execute(statement)
        cursor.execute(f"PRAGMA application_id = {APPLICATION}")
        cursor.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _storage_error(path: Path, error: sqlite3.DatabaseError) -> ObliteratusError:
    code = getattr(error, "sqlite_errorcode", None)
    kind = None if code is None else code & 0xFF  # the rest tells sub-kinds apart
    if kind == sqlite3.SQLITE_FULL:
        return StorageError(
            f"the disk that holds {path} is full. Finished units are kept: free some space, and "
            "the same command goes on."
        )
    if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StorageError(
            f"{path} is no ledger or is damaged ({error}). Choose another --output, or put a copy "
            "of it back."
        )
    if kind == sqlite3.SQLITE_BUSY:
        return StorageError(
            f"{path} was locked by another process for {BUSY_SECONDS:.0f} s. A ledger needs a "
            "local disk; run the same command again to go on."
        )
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        return StorageError(
            f"{path} cannot be read or written ({error}). Check the disk and the permissions; "
            "finished units are kept, and the same command goes on."
        )
    return StorageError(f"the ledger {path} refused an operation ({error}).")
