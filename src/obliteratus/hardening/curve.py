"""The cost of ending refusal as data: refusal left, divergence and minutes, by what is out."""

from dataclasses import asdict, dataclass
from typing import Any

from obliteratus.measure.outcomes import Outcome
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate


@dataclass(frozen=True)
class CurveRow:
    """What is left when ``rank`` directions are out of every write; rank 0 is the model untouched.

    Attributes:
        rank: How many directions.
        refusal: Share of harmful test prompts refused; its verdict is on "refusal has ended".
        broken: Share of them answered with nothing usable, which is no refusal either.
        kl: First-token KL to the untouched model on harmless test prompts, in nats; None of rank 0.
        minutes: What finding the directions took, from a loaded model on; 0 where they were known.
        outcomes: What became of each harmful test prompt, in their order.
        divergences: First-token KL of each harmless test prompt, in their order; none of rank 0.
        layer: Where the directions were read; None where they were not looked for.
        position: At which token, counted from the end.
        extractor: How they were found.
    """

    rank: int
    refusal: Estimate
    broken: Estimate
    kl: Estimate | None
    minutes: float
    outcomes: tuple[Outcome, ...]
    divergences: tuple[float, ...] = ()
    layer: Layer | None = None
    position: int | None = None
    extractor: str | None = None

    @property
    def ends_refusal(self) -> bool:
        """Whether refusal has surely ended."""
        return self.rank > 0 and self.refusal.verdict == "supported"


@dataclass(frozen=True)
class Curve:
    """The rows of one model by rising rank, and the share ``ended`` below which refusal has ended.

    ``left_out`` are ranks for which there were too few directions. ``null`` is the row of
    ``null_rank`` random directions; None where it was not measured.
    """

    ended: float
    judge: str
    rows: tuple[CurveRow, ...]
    left_out: tuple[int, ...] = ()
    null: CurveRow | None = None

    @property
    def cheapest(self) -> CurveRow | None:
        """The row of the smallest rank that surely ends refusal; None if none does."""
        return next((row for row in self.rows if row.ends_refusal), None)

    @property
    def null_rank(self) -> int:
        """How many random directions the null has: as many as end refusal, or else the most."""
        return self.largest if self.cheapest is None else self.cheapest.rank

    @property
    def undetermined(self) -> tuple[int, ...]:
        """Ranks below the cheapest at which refusal may have ended: more prompts would tell."""
        least = self.cheapest
        return tuple(
            row.rank
            for row in self.rows
            if row.rank > 0
            and row.refusal.verdict == "undetermined"
            and (least is None or row.rank < least.rank)
        )

    @property
    def largest(self) -> int:
        """The largest rank that was tried."""
        return self.rows[-1].rank

    def row(self, rank: int) -> CurveRow | None:
        """Return the row of ``rank``, or None."""
        return next((row for row in self.rows if row.rank == rank), None)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Curve":
        """Make a curve of what :meth:`as_json` returned."""
        rows = tuple(map(_row_from_json, data["rows"]))
        null = None if data["null"] is None else _row_from_json(data["null"])
        return cls(data["ended"], data["judge"], rows, tuple(data["left_out"]), null)


def _row_from_json(row: dict[str, Any]) -> CurveRow:
    read: dict[str, Any] = dict(row)
    for key in ("refusal", "broken", "kl"):
        read[key] = None if row[key] is None else Estimate.from_json(row[key])
    for key in ("outcomes", "divergences"):
        read[key] = tuple(row[key])
    return CurveRow(**read)
