"""One study on a Ray cluster of this machine, with one worker of one thread and with two.

    python benchmarks/ray_workers.py MODEL [--rounds 3] [--units 8] [--prompts 16] [--documents 6]

The same ablations are run by one worker and by two, in turns, each time into a new folder and from
a cache that holds the measurement of the original. Printed are medians: of the whole command, which
starts Ray and the workers as well, and of the seconds that units took, divided by the workers; the
first unit of a worker loads its model.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for the workers
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (so Ray spells it)

from obliteratus.store import Store
from obliteratus.studies.run import run_study
from obliteratus.studies.schema import Study


def study(model: str, units: int, prompts: int, documents: int) -> Study:
    """Return a study of as many ablations, each of one layer."""
    return Study.model_validate(
        {
            "name": "workers",
            "models": [model],
            "ablations": [{"part": "layer", "by": "zero", "layers": f"0-{units - 1}"}],
            "metrics": ["log_odds_harmful", "kl_first", "perplexity_heldout"],
            "prompts": prompts,
            "common": {"verify": {"text_documents": documents}},
        }
    )


def timed(asked: Study, folder: Path, workers: int, store: Store) -> tuple[float, float]:
    """Run the study; return the seconds of the command, and of its units per worker."""
    start = time.perf_counter()
    done = run_study(asked, folder, engine="ray", workers=workers, store=store)
    whole = time.perf_counter() - start
    assert done.pace.counts["finished"] == len(done.units), done.pace.counts
    return whole, sum(unit.seconds or 0.0 for unit in done.units) / workers


def main() -> None:
    """Print both times of one and of two workers, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--documents", type=int, default=6)
    asked = parser.parse_args()
    same = study(asked.model, asked.units, asked.prompts, asked.documents)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder / "cache")
        one = study(asked.model, 1, asked.prompts, asked.documents)
        timed(one, folder / "first", 1, store)  # measures the original
        found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for number in range(asked.rounds):
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                took = timed(same, folder / f"{workers}-{number}", workers, store)
                found[workers].append(took)
                print(f"{workers} worker(s): {took[0]:.1f} s, units {took[1]:.1f} s", flush=True)
    for place, what in enumerate(("whole command", "units, per worker")):
        one, two = (statistics.median(each[place] for each in found[count]) for count in (1, 2))
        print(f"| {what} | {one:.1f} s | {two:.1f} s | {one / two:.2f} |")


if __name__ == "__main__":
    main()
