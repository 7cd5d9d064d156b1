"""The book of runs: one SQLite file of this user, a row for every run."""

import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import ValidationError

from obliteratus.community.record import Local, Record, State
from obliteratus.errors import StorageError, UsageError, did_you_mean
from obliteratus.store.database import Kind, connect, told, transaction
from obliteratus.store.files import storage_error
from obliteratus.store.processes import has_ended, process_here

VARIABLE = "OBLITERATUS_RUNS"
OFF = "off"
BOOK_FILE = "runs.sqlite"
APPLICATION = 0x4F424C52  # "OBLR"
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE run (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('running', 'finished', 'failed', 'interrupted')),
        started REAL NOT NULL,
        ended REAL,
        process TEXT NOT NULL,
        model TEXT NOT NULL,
        method TEXT,
        behaviour TEXT,
        record TEXT NOT NULL,
        local TEXT NOT NULL
    ) STRICT;
    CREATE INDEX run_by_start ON run (started);
    """,
)
"""From version i to i + 1 each. With a new one goes an example of the version before, in
``tests/community/versions``."""
BOOK = Kind(
    noun="book of runs",
    application=APPLICATION,
    migrations=MIGRATIONS,
    kept="The result of the run is not touched by this",
    instead=f"Name another file in {VARIABLE}",
)
ID_BYTES = 6  # 2⁴⁸ ids: two runs of one user do not meet
SHORTEST_PREFIX = 2
COLUMNS = "id, state, started, ended, process, record, local"
Standing = Literal["running", "finished", "failed", "interrupted", "no end"]
"""``no end``: begun by a process that is not there: it was killed, or is on another machine."""


@dataclass(frozen=True)
class Run:
    """A recorded run. ``started`` and ``ended`` are seconds since the epoch."""

    id: str
    state: State
    started: float
    ended: float | None
    process: str
    record: Record
    local: Local

    @property
    def standing(self) -> Standing:
        """What has become of it by now."""
        is_lost = self.state == "running" and has_ended(self.process)
        return "no end" if is_lost else self.state

    @property
    def name(self) -> str:
        """The model's public name, or what it was asked for by."""
        results = self.record.results
        public = None if results is None else results.original.name
        return public or self.local.model

    @property
    def short_name(self) -> str:
        """The same without the folders in front of the name of one."""
        is_public = self.name != self.local.model or not Path(self.name).is_absolute()
        return self.name if is_public else Path(self.name).name


def book_path() -> Path | None:
    """Return the file of the book: ``$OBLITERATUS_RUNS``, or one in the user's data folder.

    None where the variable is ``off``: nothing is recorded then.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked.lower() == OFF:
        return None
    return Path(asked) if asked else Path(platformdirs.user_data_dir("obliteratus")) / BOOK_FILE


class RunBook:
    """The runs on disk. Each process opens its own; several may write at once."""

    def __init__(self, path: Path) -> None:
        """Open the book at ``path``, made if there is none.

        Raises:
            StorageError: see :func:`obliteratus.store.database.connect`, or its folder cannot be
                made.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, path) from error
        self._connection = connect(path, BOOK)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> "RunBook":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, record: Record, local: Local) -> str:
        """Write that a run has begun in this process, and return its id."""
        identity = secrets.token_hex(ID_BYTES)
        with transaction(self._connection, self.path, BOOK) as cursor:
            cursor.execute(
                "INSERT INTO run (id, kind, state, started, process, model, method, behaviour, "
                "record, local) VALUES (?, ?, 'running', ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(identity, record.kind, time.time(), process_here(), local.model),
                    *(record.method, record.behaviour),
                    *(record.model_dump_json(), local.model_dump_json()),
                ),
            )
        return identity

    def end(self, identity: str, state: State, record: Record, local: Local) -> None:
        """Write how the run ``identity`` ended."""
        with transaction(self._connection, self.path, BOOK) as cursor:
            cursor.execute(
                "UPDATE run SET state = ?, ended = ?, method = ?, behaviour = ?, record = ?, "
                "local = ? WHERE id = ?",
                (
                    *(state, time.time(), record.method, record.behaviour),
                    *(record.model_dump_json(), local.model_dump_json(), identity),
                ),
            )

    def forget(self, identity: str) -> None:
        """Take the run ``identity`` out of the book."""
        with transaction(self._connection, self.path, BOOK) as cursor:
            cursor.execute("DELETE FROM run WHERE id = ?", (identity,))

    def runs(
        self,
        *,
        model: str | None = None,
        method: str | None = None,
        behaviour: str | None = None,
        limit: int | None = None,
    ) -> tuple[Run, ...]:
        """Return runs, the newest first.

        ``model`` is a part of the name that a model was asked for by; method and behaviour are
        whole names. ``limit`` is how many at most.

        Raises:
            StorageError: a row is damaged.
        """
        wanted: list[tuple[str, str | int]] = []
        if model is not None:
            wanted.append(("instr(lower(model), lower(?)) > 0", model))
        if method is not None:
            wanted.append(("method = ?", method))
        if behaviour is not None:
            wanted.append(("behaviour = ?", behaviour))
        where = f"WHERE {' AND '.join(part for part, _ in wanted)} " if wanted else ""
        rows = self._rows(
            f"{where}ORDER BY started DESC, rowid DESC LIMIT ?",
            *(value for _, value in wanted),
            -1 if limit is None else limit,
        )
        return tuple(self._run(row) for row in rows)

    def count(self) -> int:
        """Return how many runs there are."""
        with told(self.path, BOOK):
            return int(self._connection.execute("SELECT COUNT(*) FROM run").fetchone()[0])

    def find(self, text: str) -> Run:
        """Return the run whose id begins with ``text``.

        Raises:
            UsageError: see :meth:`identity`.
            StorageError: it is damaged.
        """
        return self._run(self._rows("WHERE id = ?", self.identity(text))[0])

    def identity(self, text: str) -> str:
        """Return the id that begins with ``text``.

        Raises:
            UsageError: there is none (the nearest id is named), or there are several.
        """
        asked = text.strip().lower()
        with told(self.path, BOOK):
            ids = [row[0] for row in self._connection.execute("SELECT id FROM run")]
        matches = [each for each in ids if each.startswith(asked)]
        if len(asked) < SHORTEST_PREFIX or not matches:
            near = did_you_mean(asked, ids) if re.fullmatch(r"[0-9a-f]+", asked) else ""
            hint = near if "mean" in near else " `obliteratus runs` lists them."
            raise UsageError(f"no run called '{text}'.{hint}")
        if len(matches) > 1:
            raise UsageError(
                f"'{text}' begins the ids of {len(matches)} runs ({', '.join(sorted(matches))}). "
                "Write more of it."
            )
        return matches[0]

    def _rows(self, rest: str, *values: str | int) -> Sequence[Sequence[Any]]:
        with told(self.path, BOOK):
            return self._connection.execute(f"SELECT {COLUMNS} FROM run {rest}", values).fetchall()

    def _run(self, row: Sequence[Any]) -> Run:
        identity, state, started, ended, process, record, local = row
        try:
            return Run(
                identity,
                state,
                started,
                ended,
                process,
                Record.model_validate_json(record),
                Local.model_validate_json(local),
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise StorageError(
                f"the run {identity} in {self.path} is damaged ({where}: {first['msg']}). "
                f"`obliteratus runs delete {identity}` takes it out."
            ) from error


def opened_book() -> RunBook:
    """Open the user's book to look into it.

    Raises:
        UsageError: recording is switched off.
        StorageError: it cannot be opened.
    """
    path = book_path()
    if path is None:
        raise UsageError(
            f"{VARIABLE} is {OFF}, so no run is recorded and none can be looked up. Unset it."
        )
    return RunBook(path)
