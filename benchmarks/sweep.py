"""A sweep of some strengths against as many separate runs, on one model and one cache.

    python benchmarks/sweep.py MODEL [--points 13] [--set KEY=VALUE ...]

A separate run is ``obliterate`` at one of the strengths, from a cache in which the original is
measured and the directions are found: what such a run adds for each strength. ``--runs`` of them
are timed, at strengths spread over the range, and their median stands for each.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.store import Store
from obliteratus.studies.sweep import sweep


def main() -> None:
    """Print a table of both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--points", type=int, default=13)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--method", default="basic")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    asked = parser.parse_args()
    settings = settings_for(asked.method, asked.assignments)
    with tempfile.TemporaryDirectory() as folder:
        work, store = Path(folder), Store(Path(folder) / "cache")
        start = time.perf_counter()
        obliterate(asked.model, work / "warm", settings, store=store)
        first = time.perf_counter() - start
        start = time.perf_counter()
        found = sweep(asked.model, work / "sweep", settings, points=asked.points, store=store)
        swept = time.perf_counter() - start
        runs: list[float] = []
        for number in range(asked.runs):
            share = 0.4 + 0.3 * number
            at = settings_for(asked.method, [*asked.assignments, f"edit.strength={share}"])
            start = time.perf_counter()
            obliterate(asked.model, work / f"run{number}", at, store=store)
            runs.append(time.perf_counter() - start)
    each = statistics.median(runs)
    print(f"{asked.model}, {asked.method}: first run {first:.1f} s")
    print(f"| sweep of {len(found.points)} strengths | {swept:.1f} s |")
    print(f"| a separate run (median of {[round(r, 1) for r in runs]}) | {each:.1f} s |")
    print(f"| ratio | {len(found.points) * each / swept:.2f} |")


if __name__ == "__main__":
    main()
