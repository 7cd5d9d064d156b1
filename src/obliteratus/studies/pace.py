"""How long a study still takes: by the measured mean of each kind of unit."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from obliteratus.studies.ledger import Recorded, State


@dataclass(frozen=True)
class Pace:
    """Where a study stands. ``left`` is in seconds, infinity where it cannot be known yet.

    A unit of a kind that was measured is expected to take the mean of that kind; of another kind,
    the mean of all, once two kinds were measured. Before that one kind says nothing of the others:
    the first unit of a study also waits for PROBE, DISTILL and the original.
    """

    counts: dict[State, int]
    left: float

    @property
    def done(self) -> int:
        """Units that are finished or failed."""
        return self.counts["finished"] + self.counts["failed"]

    @property
    def total(self) -> int:
        """All units."""
        return sum(self.counts.values())


def pace(units: Sequence[Recorded], *, workers: int, now: float | None = None) -> Pace:
    """Return where ``units`` stand, with ``workers`` at work.

    What is left is spread over the workers, and no shorter than the longest unit that runs.
    """
    now = time.time() if now is None else now
    counts: dict[State, int] = {"waiting": 0, "running": 0, "finished": 0, "failed": 0}
    took: defaultdict[str, list[float]] = defaultdict(list)
    for unit in units:
        counts[unit.state] += 1
        if unit.state == "finished" and unit.seconds is not None:
            took[unit.entry.kind].append(unit.seconds)
    every = [seconds for each in took.values() for seconds in each]
    if not counts["waiting"] and not counts["running"]:
        return Pace(counts, 0.0)
    to_come = {unit.entry.kind for unit in units if unit.state in ("waiting", "running")}
    if not to_come <= took.keys() and len(took) < 2:
        return Pace(counts, math.inf)
    mean = sum(every) / len(every)
    work, longest = 0.0, 0.0
    for unit in units:
        if unit.state not in ("waiting", "running"):
            continue
        own = took.get(unit.entry.kind)
        expected = mean if not own else sum(own) / len(own)
        if unit.state == "running":
            spent = now - (unit.claimed or now)
            expected = max(expected - spent, 0.0)
            longest = max(longest, expected)
        work += expected
    busy = max(1, min(workers, counts["waiting"] + counts["running"]))
    return Pace(counts, max(work / busy, longest))
