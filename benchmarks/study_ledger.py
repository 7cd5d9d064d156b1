"""What the ledger costs per unit: claim, heartbeat thread and finish, with nothing in between.

    python benchmarks/study_ledger.py                      # on the disk of the working folder
    python benchmarks/study_ledger.py --units 5000 --workers 2

Units do nothing, so all of the time is overhead; results are as large as those of a real unit with
five metrics. With several workers it is the time of one worker per unit, which includes waiting for
the others' transactions.
"""

import argparse
import itertools
import json
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from obliteratus.studies.engines.local import LocalEngine
from obliteratus.studies.ledger import LEDGER_FILE, Entry, Ledger
from obliteratus.studies.work import Runner, Work, work_off

METRICS = 5
ESTIMATE = {"value": 0.25, "interval": [0.125, 0.375], "n": 128, "null": 0.0, "seed": 0}
ROW = {
    "key": "log_odds_harmful",
    "label": "refusal log-odds, harmful prompts",
    "unit": "log-odds",
    **dict.fromkeys(("original", "edited", "change"), ESTIMATE),
    "test": "sign-flip permutation",
    "p_value": 0.0004,
    "detectable": 0.125,
    "details": {},
}
SPEC = {"settings": {f"section.{i}": i for i in range(120)}, "name": "L3 H2 mean"}


def nothing() -> Runner:
    """Make a runner that does nothing and returns a result of the usual size."""
    result = {"rows": [ROW] * METRICS}
    return lambda _entry: result


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path())
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        with Ledger(folder, create=True) as ledger:
            entries = [
                Entry(f"unit-{i}", "nothing", "none", {**SPEC, "number": i})
                for i in range(asked.units)
            ]
            ledger.add(entries, {})
        work = Work(folder, nothing, asked.workers)
        start = time.perf_counter()
        if asked.workers == 1:
            work_off(work, "benchmark")
        else:
            LocalEngine().work_off(work, lambda: None)
        took = time.perf_counter() - start
        raw = sqlite3.connect(folder / LEDGER_FILE)
        claims = [row[0] for row in raw.execute("SELECT claimed FROM unit ORDER BY claimed")]
        owners = raw.execute("SELECT owner, claimed FROM unit ORDER BY owner, claimed").fetchall()
        raw.close()
        gaps = [1000 * (b[1] - a[1]) for a, b in itertools.pairwise(owners) if a[0] == b[0]]
        cuts = quantiles(gaps, n=100)
        print(
            json.dumps(
                {
                    "units": len(claims),
                    "workers": asked.workers,
                    "ms_per_unit": round(sum(gaps) / len(gaps), 2),
                    "median_ms": round(cuts[49], 2),
                    "p99_ms": round(cuts[98], 2),
                    "seconds": round(took, 2),
                    "load": round(os.getloadavg()[0], 1),
                }
            )
        )


if __name__ == "__main__":
    main()
