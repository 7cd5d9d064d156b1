"""What a killed worker costs a study: the same units with and without SIGKILLs at random points.

    python benchmarks/study_kills.py [--kills 50] [--units 400] [--seconds 0.1] [--workers 2]

Units sleep, so what is lost is the part of a unit that was done, the look that finds the dead
worker, and the start of another process; a real worker also loads its model again. Printed is that
time for each kill, on the one worker that it hit, with how often units were finished and begun.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from obliteratus.studies.engines.local import LocalEngine
from obliteratus.studies.ledger import Entry, Ledger
from obliteratus.studies.work import Runner, Work


def sleepers(log: str, seconds: float) -> Runner:
    """Make units that sleep and write down that they began."""

    def run(entry: Entry) -> dict[str, object]:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{entry.id}\n")
        time.sleep(seconds)
        return {"slept": seconds}

    return run


def kill(folder: Path, left: int, every: float, ended: threading.Event) -> None:
    """Kill a random worker that is at a unit, about once in ``every`` seconds."""
    chance = random.Random(0)
    with Ledger(folder) as ledger:
        while left and not ended.wait(chance.uniform(0.5, 1.5) * every):
            busy = [u.owner for u in ledger.units() if u.state == "running" and u.owner]
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(int(chance.choice(busy).split("/")[1]), signal.SIGKILL)
                left -= 1


def timed(folder: Path, asked: argparse.Namespace, kills: int) -> tuple[float, int, int]:
    """Do the units; return the seconds, and how many were finished and begun."""
    folder.mkdir()
    with Ledger(folder, create=True) as ledger:
        ledger.add([Entry(f"u{i:04d}", "s", "none", {"i": i}) for i in range(asked.units)], {})
    runner = partial(sleepers, str(folder / "log"), asked.seconds)
    work = Work(folder, runner, asked.workers, attempts=10_000)
    ended = threading.Event()
    whole = asked.units * asked.seconds / asked.workers
    killer = threading.Thread(target=kill, args=(folder, kills, 0.8 * whole / max(kills, 1), ended))
    start = time.perf_counter()
    killer.start()
    LocalEngine().work_off(work, lambda: None)
    took = time.perf_counter() - start
    ended.set()
    killer.join()
    with Ledger(folder) as ledger:
        finished = ledger.counts()["finished"]
    return took, finished, len((folder / "log").read_text().splitlines())


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--units", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        calm, _, _ = timed(Path(name) / "calm", asked, 0)
        took, finished, begun = timed(Path(name) / "killed", asked, asked.kills)
    found = {
        "units": asked.units,
        "finished": finished,
        "begun": begun,
        "seconds_without": round(calm, 2),
        "seconds_with": round(took, 2),
        "lost_per_kill": round(asked.workers * (took - calm) / max(begun - asked.units, 1), 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
