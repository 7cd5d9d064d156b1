"""The leaderboard: verified edits of one model and behaviour, compared only where that is fair."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obliteratus.community.book import Run
from obliteratus.community.record import Aggregates, Kind, Protocol
from obliteratus.community.words import OUTLIER
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.front import Contender, Rank, ranks

if TYPE_CHECKING:  # what checks contributions brings numpy along, and reads nothing here
    from obliteratus.community.received import Received

REFUSAL, DIVERGENCE, PERPLEXITY = "refusal_harmful", "kl_first", "perplexity_heldout"
VERIFIED = ("obliterate", "verify")
"""The commands that measure a folder as it was saved."""
GOAL = "refusal"
"""The claim of an edit that is to end the behaviour; one that amplifies it is on no board."""
ID_SHOWN = 8


@dataclass(frozen=True)
class Row:
    """One edit on a board.

    Attributes:
        id: The run that measured it last.
        method: The method, or None where it is not known.
        refusal: The share of prompts that still show the behaviour.
        divergence: First-token KL on harmless prompts in nats.
        perplexity: The ratio to the original's on held-out text; None where it was not measured.
        device: The class of device that it was measured on.
        dtype: What it computed in.
        started: When, in seconds since the epoch.
        times: How many runs measured the same weights.
        rank: Who beats it and who is tied with it, by the ids of their runs; None where it is not
            ranked, being far from all others.
        is_received: Whether somebody else contributed it: nobody has verified it here.
        flags: What was seen in a contributed row.
    """

    id: str
    method: str | None
    refusal: Estimate
    divergence: Estimate
    perplexity: Estimate | None
    device: str
    dtype: str
    started: float
    times: int
    rank: Rank | None
    is_received: bool = False
    flags: tuple[str, ...] = ()

    @property
    def is_on_front(self) -> bool:
        """Whether nobody beats it."""
        return self.rank is not None and not self.rank.beaten_by

    @property
    def label(self) -> str:
        """The method with the beginning of the id, which together name it on a board."""
        whose = ", received" if self.is_received else ""
        return f"{self.method or 'unknown'} {self.id[:ID_SHOWN]}{whose}"

    def as_json(self) -> dict[str, Any]:
        """Return a plain row, for a table on a page or in a file."""
        return {
            "id": self.id,
            "method": self.method,
            **_ends("refusal", self.refusal),
            **_ends("divergence", self.divergence),
            **_ends("perplexity", self.perplexity),
            "n": self.refusal.n,
            "device": self.device,
            "dtype": self.dtype,
            "started": self.started,
            "times": self.times,
            "is_on_front": self.is_on_front,
            "beaten_by": [] if self.rank is None else list(self.rank.beaten_by),
            "tied_with": [] if self.rank is None else list(self.rank.tied_with),
            "is_received": self.is_received,
            "flags": list(self.flags),
        }


@dataclass(frozen=True)
class Board:
    """The edits of one model for one behaviour that were measured alike.

    Attributes:
        name: What the model is called here: its public name, or that of its folder.
        model: Its public name; None for one that lies on a disk.
        source: The fingerprint of where the model came from.
        behaviour: What was looked for.
        protocol: How all rows were measured: they share prompts, their number, judge and lengths.
        rows: The edits, those of the least refusal first.
    """

    name: str
    model: str | None
    source: str
    behaviour: str
    protocol: Protocol
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The model and the behaviour in words."""
        return f"{self.name}, {self.behaviour}"

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of the rows and what they have in common."""
        return {
            "name": self.name,
            "model": self.model,
            "source": self.source,
            "behaviour": self.behaviour,
            "protocol": self.protocol.model_dump(mode="json"),
            "rows": [row.as_json() for row in self.rows],
        }


@dataclass(frozen=True)
class _Entry:
    """A verified run with what a board takes of it; ``names`` are those that it is found by."""

    id: str
    kind: Kind
    method: str | None
    behaviour: str | None
    results: Aggregates
    device: str
    started: float
    name: str
    names: tuple[str, ...]
    is_received: bool = False
    flags: tuple[str, ...] = ()

    @property
    def group(self) -> tuple[Any, ...]:
        return self.results.original.source, self.behaviour, self.results.protocol

    @property
    def is_ranked(self) -> bool:
        return not any(flag.startswith(OUTLIER) for flag in self.flags)

    @property
    def is_of_a_board(self) -> bool:
        """Whether a saved folder was measured, with the goal to end the behaviour."""
        results = self.results
        if self.kind not in VERIFIED or GOAL not in [claim.key for claim in results.claims]:
            return False
        found = (results.metric(key) for key in (REFUSAL, DIVERGENCE))
        return all(metric is not None and metric.edited is not None for metric in found)

    def edited(self, key: str) -> Estimate:
        """Return what was measured of the edited model; ``is_of_a_board`` says that it was."""
        metric = self.results.metric(key)
        assert metric is not None
        assert metric.edited is not None
        return metric.edited


def leaderboard(
    runs: Sequence[Run],
    received: "Sequence[Received]" = (),
    *,
    model: str | None = None,
    behaviour: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Board, ...]:
    """Return a board for each model, behaviour and protocol, those with the most rows first.

    Only finished runs that measured a saved folder, with the goal to end the behaviour, are on it.
    Rows are compared with those of their own board alone. Several runs of the same edited weights
    are one row, that of the newest. Contributions that were ``received`` stand beside own runs and
    are marked; one that is far from all others is shown and not ranked, and of weights that were
    measured here the own run counts. ``model`` and ``device`` are parts of names, ``behaviour`` and
    ``dtype`` whole ones; ranks are among the rows that are left.
    """
    entries = [each for run in runs if (each := _of_run(run)) is not None]
    entries += [_of_received(each) for each in received]
    groups: dict[tuple[Any, ...], list[_Entry]] = {}
    for entry in sorted(entries, key=lambda each: (each.is_received, -each.started)):
        if entry.is_of_a_board and _is_wanted(entry, model, behaviour, device, dtype):
            groups.setdefault(entry.group, []).append(entry)
    boards = [_board(entries) for entries in groups.values()]
    return tuple(sorted(boards, key=lambda board: (-len(board.rows), board.title)))


def _of_run(run: Run) -> _Entry | None:
    record = run.record
    if run.state != "finished" or record.results is None:
        return None
    return _Entry(
        id=run.id,
        kind=record.kind,
        method=record.method,
        behaviour=record.behaviour,
        results=record.results,
        device=record.hardware.device,
        started=run.started,
        name=run.short_name,
        names=(run.name, run.local.model),
    )


def _of_received(row: "Received") -> _Entry:
    found = row.contribution
    day = datetime.datetime.fromisoformat(found.day).replace(tzinfo=datetime.UTC)
    original = found.results.original
    name = original.name or f"a local {original.model_type}"
    return _Entry(
        id=found.sha256,
        kind=found.kind,
        method=found.method,
        behaviour=found.behaviour,
        results=found.results,
        device=found.device,
        started=day.timestamp(),
        name=name,
        names=(name,),
        is_received=True,
        flags=row.flags,
    )


def _is_wanted(
    entry: _Entry, model: str | None, behaviour: str | None, device: str | None, dtype: str | None
) -> bool:
    return (
        (model is None or any(model.lower() in name.lower() for name in entry.names))
        and behaviour in (None, entry.behaviour)
        and (device is None or device.lower() in entry.device.lower())
        and dtype in (None, entry.results.edited.dtype)
    )


def _board(entries: Sequence[_Entry]) -> Board:
    """Return the board of ``entries``, own ones first and of those the newest."""
    chosen: dict[str, _Entry] = {}
    times: dict[str, int] = {}
    for entry in entries:
        weights = entry.results.edited.weights
        chosen.setdefault(weights, entry)
        times[weights] = times.get(weights, 0) + 1
    stands = ranks(
        [
            Contender(each.id, each.edited(REFUSAL), each.edited(DIVERGENCE))
            for each in chosen.values()
            if each.is_ranked
        ]
    )
    rows = [_row(entry, stands.get(entry.id), times[weights]) for weights, entry in chosen.items()]
    first = entries[0]
    original = first.results.original
    return Board(
        name=first.name,
        model=original.name,
        source=original.source,
        behaviour=first.behaviour or GOAL,
        protocol=first.results.protocol,
        rows=tuple(sorted(rows, key=lambda row: (row.refusal.value, row.divergence.value))),
    )


def _row(entry: _Entry, rank: Rank | None, times: int) -> Row:
    perplexity = entry.results.metric(PERPLEXITY)
    return Row(
        id=entry.id,
        method=entry.method,
        refusal=entry.edited(REFUSAL),
        divergence=entry.edited(DIVERGENCE),
        perplexity=None if perplexity is None else perplexity.change,
        device=entry.device,
        dtype=entry.results.edited.dtype,
        started=entry.started,
        times=times,
        rank=rank,
        is_received=entry.is_received,
        flags=entry.flags,
    )


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    value = None if estimate is None else estimate.value
    low, high = (None, None) if estimate is None else estimate.interval
    return {name: value, f"{name}_low": low, f"{name}_high": high}
