"""The leaderboard: verified edits of one model and behaviour, compared only where that is fair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from obliteratus.community.book import Run
from obliteratus.community.record import ModelFacts, Protocol, Record, Results
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.front import Contender, Rank, ranks

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
        rank: Who beats it and who is tied with it, by the ids of their runs.
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
    rank: Rank

    @property
    def is_on_front(self) -> bool:
        """Whether nobody beats it."""
        return not self.rank.beaten_by

    @property
    def label(self) -> str:
        """The method with the beginning of the id, which together name it on a board."""
        return f"{self.method or 'unknown'} {self.id[:ID_SHOWN]}"

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
            "beaten_by": list(self.rank.beaten_by),
            "tied_with": list(self.rank.tied_with),
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
    """A verified run with what a board takes of it."""

    run: Run
    results: Results
    refusal: Estimate
    divergence: Estimate

    @property
    def group(self) -> tuple[Any, ...]:
        return self.results.original.source, self.run.record.behaviour, self.results.protocol


def leaderboard(
    runs: Sequence[Run],
    *,
    model: str | None = None,
    behaviour: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Board, ...]:
    """Return a board for each model, behaviour and protocol, those with the most rows first.

    Only finished runs that measured a saved folder, with the goal to end the behaviour, are on it.
    Rows are compared with those of their own board alone. Several runs of the same edited weights
    are one row, that of the newest. ``model`` and ``device`` are parts of names, ``behaviour`` and
    ``dtype`` whole ones; ranks are among the rows that are left.
    """
    groups: dict[tuple[Any, ...], list[_Entry]] = {}
    for run in sorted(runs, key=lambda each: -each.started):
        entry = _entry(run)
        if entry is not None and _is_wanted(entry, model, behaviour, device, dtype):
            groups.setdefault(entry.group, []).append(entry)
    boards = [_board(entries) for entries in groups.values()]
    return tuple(sorted(boards, key=lambda board: (-len(board.rows), board.title)))


def _entry(run: Run) -> _Entry | None:
    record, results = run.record, run.record.results
    if run.state != "finished" or record.kind not in VERIFIED or results is None:
        return None
    if GOAL not in [claim.key for claim in results.claims]:
        return None
    refusal, divergence = (results.metric(key) for key in (REFUSAL, DIVERGENCE))
    if refusal is None or divergence is None:
        return None
    if refusal.edited is None or divergence.edited is None:
        return None
    return _Entry(run, results, refusal.edited, divergence.edited)


def _is_wanted(
    entry: _Entry, model: str | None, behaviour: str | None, device: str | None, dtype: str | None
) -> bool:
    record, facts = entry.run.record, entry.results.edited
    names = (entry.run.name.lower(), entry.run.local.model.lower())
    return (
        (model is None or any(model.lower() in name for name in names))
        and behaviour in (None, record.behaviour)
        and (device is None or device.lower() in record.hardware.device.lower())
        and dtype in (None, facts.dtype)
    )


def _board(entries: Sequence[_Entry]) -> Board:
    newest: dict[str, _Entry] = {}
    times: dict[str, int] = {}
    for entry in entries:  # the newest first
        weights = entry.results.edited.weights
        newest.setdefault(weights, entry)
        times[weights] = times.get(weights, 0) + 1
    chosen = list(newest.values())
    stands = ranks([Contender(e.run.id, e.refusal, e.divergence) for e in chosen])
    rows = [
        _row(entry, stands[entry.run.id], times[entry.results.edited.weights]) for entry in chosen
    ]
    first = entries[0]
    original: ModelFacts = first.results.original
    return Board(
        name=first.run.short_name,
        model=original.name,
        source=original.source,
        behaviour=first.run.record.behaviour or GOAL,
        protocol=first.results.protocol,
        rows=tuple(sorted(rows, key=lambda row: (row.refusal.value, row.divergence.value))),
    )


def _row(entry: _Entry, rank: Rank, times: int) -> Row:
    record: Record = entry.run.record
    perplexity = entry.results.metric(PERPLEXITY)
    return Row(
        id=entry.run.id,
        method=record.method,
        refusal=entry.refusal,
        divergence=entry.divergence,
        perplexity=None if perplexity is None else perplexity.change,
        device=record.hardware.device,
        dtype=entry.results.edited.dtype,
        started=entry.run.started,
        times=times,
        rank=rank,
    )


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    value = None if estimate is None else estimate.value
    low, high = (None, None) if estimate is None else estimate.interval
    return {name: value, f"{name}_low": low, f"{name}_high": high}
