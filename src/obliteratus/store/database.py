"""An SQLite file: opened, brought to this program's version, and its failures told in words."""

import contextlib
import sqlite3
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from obliteratus.errors import ObliteratusError, StorageError

BUSY_SECONDS = 60.0  # a transaction takes milliseconds; a disk under load can take seconds


@dataclass(frozen=True)
class Kind:
    """What a database file is, and how it is spoken of.

    Attributes:
        noun: What it is called in a message: ``ledger``.
        application: Four bytes in the header of the file: no other database is taken for it.
        migrations: SQL from version i to i + 1 each; ``PRAGMA user_version`` counts those that
            were carried out.
        kept: What is safe when a write fails, and how to go on.
        instead: What to do where the file is not what it should be.
    """

    noun: str
    application: int
    migrations: Sequence[str]
    kept: str
    instead: str


def connect(path: Path, kind: Kind) -> sqlite3.Connection:
    """Open the database at ``path``, made if it is not there, and bring it to our version.

    WAL lets readers look while another process writes; with ``synchronous=FULL`` what was committed
    is on the disk, also after a loss of power. A WAL needs a local disk: no network file system.

    Raises:
        StorageError: the file is no database of this kind, it is of a newer version, or the disk is
            full.
    """
    with told(path, kind):
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path, kind)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def transaction(
    connection: sqlite3.Connection, path: Path, kind: Kind
) -> Generator[sqlite3.Cursor]:
    """Yield a cursor whose statements are all carried out when the block ends, or none.

    The write lock is taken at once, so that what is read inside is still so when it is written.
    """
    with told(path, kind):
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
def told(path: Path, kind: Kind) -> Generator[None]:
    """Turn what SQLite raises inside the block into a sentence.

    Raises:
        StorageError: the disk is full, the file is no database, is damaged or stays locked.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _storage_error(path, kind, error) from error


def _prepare(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    connection.execute("BEGIN")  # the three are of one moment: another process may be making it
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    things = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    connection.execute("COMMIT")
    is_new = not version and not application and not things  # its WAL may have been set up already
    if not is_new and application != kind.application:
        raise StorageError(f"{path} is a database, but no {kind.noun}. {kind.instead}.")
    if version > len(kind.migrations):
        raise StorageError(
            f"{path} is a {kind.noun} of version {version}, and this program knows versions up to "
            f"{len(kind.migrations)}. Update obliteratus; nothing was changed."
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if version < len(kind.migrations):
        _migrate(connection, path, kind)


def _migrate(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    """Carry out the migrations that are missing; another process may be doing the same."""
    with transaction(connection, path, kind) as cursor:
        version = _pragma(connection, "user_version")
        for script in kind.migrations[version:]:
            for statement in script.split(";"):
                if statement.strip():
                    cursor.execute(statement)
        cursor.execute(f"PRAGMA application_id = {kind.application}")
        cursor.execute(f"PRAGMA user_version = {len(kind.migrations)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _storage_error(path: Path, kind: Kind, error: sqlite3.DatabaseError) -> ObliteratusError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF  # the rest tells sub-kinds apart
    if primary == sqlite3.SQLITE_FULL:
        return StorageError(f"the disk that holds {path} is full. {kind.kept}.")
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StorageError(
            f"{path} is no {kind.noun} or is damaged ({error}). {kind.instead}, or put a copy of "
            "it back."
        )
    if primary == sqlite3.SQLITE_BUSY:
        return StorageError(
            f"{path} was locked by another process for {BUSY_SECONDS:.0f} s. A {kind.noun} needs a "
            "local disk; run the same command again to go on."
        )
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        return StorageError(
            f"{path} cannot be read or written ({error}). Check the disk and the permissions. "
            f"{kind.kept}."
        )
    return StorageError(f"the {kind.noun} {path} refused an operation ({error}).")
