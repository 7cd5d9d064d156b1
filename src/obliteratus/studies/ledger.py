"""The ledger: every unit of work is claimed, heart-beaten and finished in it, and nowhere else.

A claim is a lease with a *fencing token*, a number that grows with every claim of the unit. Whoever
finishes a unit shows its token; where another has claimed it since, the token is old and the result
is refused. So each unit is finished at most once, whatever was killed, suspended or slow.
"""

import json
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from obliteratus.errors import StorageError, UsageError
from obliteratus.store.processes import has_ended, process_here
from obliteratus.studies.database import connect, told, transaction

LEDGER_FILE = "ledger.sqlite"
LEASE_SECONDS = 60.0
"""How long a claim lives without a heartbeat; four of them fit in, so three may be late."""
ATTEMPTS = 3
"""A unit whose worker died so often is failed: it is probably what kills them."""
FIRST_OF = "SELECT id FROM unit WHERE state = 'waiting' AND affinity = ? ORDER BY place LIMIT 1"
FIRST_OF_ANOTHER = (
    "SELECT id FROM unit WHERE state = 'waiting' AND affinity = (SELECT affinity FROM unit "
    "WHERE state = 'waiting' GROUP BY affinity ORDER BY affinity IN (SELECT affinity FROM unit "
    "WHERE state = 'running'), min(place) LIMIT 1) ORDER BY place LIMIT 1"
)
"""Both are answered from the index alone: a claim does not take longer in a study of thousands."""
NEXT_OF = (
    "SELECT id, kind, affinity, spec FROM unit WHERE state = 'waiting' AND affinity = ? "
    "AND token = 0 ORDER BY place LIMIT ?"
)
LOOKED_AT = 64  # units that wait, when more are claimed: those that go together follow each other
State = Literal["waiting", "running", "finished", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "finished", "failed")


class LeaseLostError(StorageError):
    """The unit was claimed by another worker in the meantime; the result is dropped."""


@dataclass(frozen=True)
class Entry:
    """A unit as it is put in: ``id`` is a hash of the ``spec``, which is JSON-ready.

    ``affinity`` is what is costly to change between units (the model), ``kind`` what units of one
    duration have in common.
    """

    id: str
    kind: str
    affinity: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """The right to do one unit, as long as the lease lives; ``token`` is the fencing token."""

    entry: Entry
    token: int
    owner: str


@dataclass(frozen=True)
class Recorded:
    """A unit with what has become of it. ``seconds`` is how long the finished attempt took."""

    entry: Entry
    place: int
    state: State
    token: int
    deaths: int
    owner: str | None
    claimed: float | None
    ended: float | None
    seconds: float | None
    result: Mapping[str, Any] | None
    error: str | None


class Ledger:
    """One study's units on disk. Each thread and each process opens its own."""

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        lease: float = LEASE_SECONDS,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Open the ledger in ``folder``; with ``create`` one is made where there is none.

        Raises:
            StorageError: see :func:`obliteratus.studies.database.connect`.
        """
        self.path = folder / LEDGER_FILE
        self.lease = lease
        self.attempts = attempts
        self._connection = connect(self.path, create=create)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, entries: Sequence[Entry], facts: Mapping[str, Any]) -> int:
        """Put in the ``entries`` that are new, in this order, and return how many those are.

        A study may grow: units that are there already keep their state. ``facts`` describe the
        study and replace those that are there.

        Raises:
            UsageError: the ledger has units that are not among ``entries``, so it is of another
                study, or two entries are the same unit.
        """
        ids = [entry.id for entry in entries]
        if len(set(ids)) < len(ids):
            twice = next(entry for entry in entries if ids.count(entry.id) > 1)
            raise UsageError(f"the study names one unit twice ({twice.kind}); name it once.")
        with transaction(self._connection, self.path) as cursor:
            known = {row[0] for row in cursor.execute("SELECT id FROM unit")}
            strange = known.difference(ids)
            if strange:
                raise UsageError(
                    f"{self.path.parent} holds another study: {len(strange)} of its {len(known)} "
                    "units are not in this one. A study may grow in its folder, not change; choose "
                    "another --output."
                )
            for place, entry in enumerate(entries):
                values = (entry.id, place, entry.kind, entry.affinity, _json(entry.spec))
                cursor.execute(
                    "INSERT INTO unit (id, place, kind, affinity, spec) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET place = excluded.place",
                    values,
                )
            for name, value in facts.items():
                cursor.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, _json(value)))
        return len(ids) - len(known)

    def facts(self) -> dict[str, Any]:
        """Return what describes the study."""
        with told(self.path):
            rows = self._connection.execute("SELECT name, value FROM fact").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def claim(self, owner: str, affinity: str | None = None) -> Claim | None:
        """Return the right to do one waiting unit, or None where none waits.

        Units of ``affinity`` come first, then those of one that nobody is at, each in the order of
        the study. Leases that are over are taken back before.
        """
        now = time.time()
        with transaction(self._connection, self.path) as cursor:
            self._take_back(cursor, "expires < ?", (now,))
            row = cursor.execute(
                "UPDATE unit SET state = 'running', token = token + 1, owner = ?, claimed = ?, "
                f"expires = ? WHERE id = coalesce(({FIRST_OF}), ({FIRST_OF_ANOTHER})) "
                "RETURNING id, kind, affinity, spec, token",
                (owner, now, now + self.lease, affinity),
            ).fetchone()
        if row is None:
            return None
        return Claim(Entry(row[0], row[1], row[2], json.loads(row[3])), row[4], owner)

    def claim_more(
        self, claim: Claim, is_wanted: Callable[[Entry], bool], most: int
    ) -> tuple[Claim, ...]:
        """Claim up to ``most`` waiting units more for the owner of ``claim``: those it goes with.

        They are of its affinity, ``is_wanted`` and were never begun: what killed a worker is not to
        take others with it. Of the units that wait only the next few are looked at.
        """
        if claim.token > 1:
            return ()
        now, found = time.time(), list[Claim]()
        with transaction(self._connection, self.path) as cursor:
            rows = cursor.execute(NEXT_OF, (claim.entry.affinity, LOOKED_AT)).fetchall()
            entries = [Entry(row[0], row[1], row[2], json.loads(row[3])) for row in rows]
            for entry in [entry for entry in entries if is_wanted(entry)][:most]:
                (token,) = cursor.execute(
                    "UPDATE unit SET state = 'running', token = token + 1, owner = ?, claimed = ?, "
                    "expires = ? WHERE id = ? RETURNING token",
                    (claim.owner, now, now + self.lease, entry.id),
                ).fetchone()
                found.append(Claim(entry, token, claim.owner))
        return tuple(found)

    def beat(self, claim: Claim) -> bool:
        """Prolong the lease and return whether the claim still held."""
        with transaction(self._connection, self.path) as cursor:
            cursor.execute(
                "UPDATE unit SET expires = ? WHERE id = ? AND token = ? AND state = 'running'",
                (time.time() + self.lease, claim.entry.id, claim.token),
            )
            return cursor.rowcount == 1

    def finish(self, claim: Claim, result: Mapping[str, Any], seconds: float) -> None:
        """Record the ``result`` of the unit.

        Raises:
            LeaseLostError: another worker has claimed the unit since, or it was taken back.
            StorageError: the disk is full; the claim is as it was.
        """
        self._end(claim, "finished", seconds, result=_json(result))

    def fail(self, claim: Claim, error: str, seconds: float) -> None:
        """Record that the unit cannot be done, and why.

        Raises:
            LeaseLostError, StorageError: as :meth:`finish`.
        """
        self._end(claim, "failed", seconds, error=error)

    def release(self, claim: Claim) -> None:
        """Give a claim back, which is no attempt: the study was stopped."""
        with transaction(self._connection, self.path) as cursor:
            cursor.execute(
                "UPDATE unit SET state = 'waiting', owner = NULL, expires = NULL "
                "WHERE id = ? AND token = ? AND state = 'running'",
                (claim.entry.id, claim.token),
            )

    def lost(self, claim: Claim) -> None:
        """Take a claim back from a worker that is known to be dead, as when its lease is over."""
        with transaction(self._connection, self.path) as cursor:
            self._take_back(cursor, "id = ? AND token = ?", (claim.entry.id, claim.token))

    def release_all(self, owner: str) -> None:
        """Give back every claim of ``owner``, whom the study itself has stopped."""
        with transaction(self._connection, self.path) as cursor:
            cursor.execute(
                "UPDATE unit SET state = 'waiting', owner = NULL, expires = NULL "
                "WHERE owner = ? AND state = 'running'",
                (owner,),
            )

    def reclaim_dead(self) -> int:
        """Take back the claims of workers of this machine that are gone; return how many.

        Without this they would be taken back when their lease is over.
        """
        with told(self.path):
            rows = self._connection.execute(
                "SELECT DISTINCT owner FROM unit WHERE state = 'running'"
            ).fetchall()
        gone = [owner for (owner,) in rows if is_gone(owner)]
        if not gone:
            return 0
        count = 0
        with transaction(self._connection, self.path) as cursor:
            for owner in gone:
                count += self._take_back(cursor, "owner = ?", (owner,))
        return count

    def retry_failed(self) -> int:
        """Let failed units be done again; return how many."""
        with transaction(self._connection, self.path) as cursor:
            cursor.execute(
                "UPDATE unit SET state = 'waiting', error = NULL, ended = NULL, seconds = NULL, "
                "deaths = 0 WHERE state = 'failed'"
            )
            return cursor.rowcount

    def counts(self) -> dict[State, int]:
        """Return how many units are in each state."""
        with told(self.path):
            rows = self._connection.execute("SELECT state, COUNT(*) FROM unit GROUP BY state")
            found = dict(rows.fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def units(self, *, with_results: bool = True) -> tuple[Recorded, ...]:
        """Return every unit with what has become of it, in the order of the study.

        Results are most of what there is to read; ``result`` is None without them.
        """
        result = "result" if with_results else "NULL"
        with told(self.path):
            rows = self._connection.execute(
                "SELECT id, kind, affinity, spec, place, state, token, deaths, owner, claimed, "
                f"ended, seconds, {result}, error FROM unit ORDER BY place"
            ).fetchall()
        return tuple(_recorded(row) for row in rows)

    def _end(
        self,
        claim: Claim,
        state: State,
        seconds: float,
        *,
        result: str | None = None,
        error: str | None = None,
    ) -> None:
        with transaction(self._connection, self.path) as cursor:
            cursor.execute(
                "UPDATE unit SET state = ?, result = ?, error = ?, seconds = ?, ended = ?, "
                "expires = NULL WHERE id = ? AND token = ? AND state = 'running'",
                (state, result, error, seconds, time.time(), claim.entry.id, claim.token),
            )
            is_ours = cursor.rowcount == 1
        if not is_ours:
            raise LeaseLostError(
                f"the unit {claim.entry.id} was taken back from {claim.owner}, which had not been "
                f"heard of for {self.lease:.0f} s; its result is dropped."
            )

    def _take_back(
        self, cursor: sqlite3.Cursor, condition: str, values: tuple[str | float | int, ...]
    ) -> int:
        reason = (
            f"its worker died {self.attempts} times. Probably it needs more memory than there is: "
            "run fewer --workers, then --retry-failed."
        )
        cursor.execute(
            "UPDATE unit SET deaths = deaths + 1, owner = NULL, expires = NULL, "
            "state = CASE WHEN deaths + 1 >= ? THEN 'failed' ELSE 'waiting' END, "
            "error = CASE WHEN deaths + 1 >= ? THEN ? END, "
            "ended = CASE WHEN deaths + 1 >= ? THEN ? END "
            f"WHERE state = 'running' AND {condition}",
            (self.attempts, self.attempts, reason, self.attempts, time.time(), *values),
        )
        return cursor.rowcount


def owner_here(pid: int | None = None) -> str:
    """Return a name for a process of this machine (this one) that no other has, or will have."""
    return f"{socket.gethostname()}/{process_here(pid)}"


def is_gone(owner: str | None) -> bool:
    """Say whether ``owner`` was a process of this machine and is no more."""
    host, _, process = (owner or "").partition("/")
    return host == socket.gethostname() and has_ended(process)


def _recorded(row: Sequence[Any]) -> Recorded:
    identity, kind, affinity, spec, place, state, token, deaths, owner, claimed = row[:10]
    ended, seconds, result, error = row[10:]
    return Recorded(
        entry=Entry(identity, kind, affinity, json.loads(spec)),
        place=place,
        state=state,
        token=token,
        deaths=deaths,
        owner=owner,
        claimed=claimed,
        ended=ended,
        seconds=seconds,
        result=None if result is None else json.loads(result),
        error=error,
    )


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
