"""A sweep of some strengths against as many separate runs, on one model.

    python benchmarks/sweep.py MODEL [--points 13] [--prompts 32] [--whole 1]
    python benchmarks/sweep.py MODEL --batches      # strengths in one batch against one by one

Both are commands in processes of their own, with as many prompts and documents, and measure what
the sweep measures: refusal and log-odds, first-token KL, perplexity, similarity of harmless
answers. The sweep begins with an empty cache. Of the separate runs (``obliterate`` at one strength)
the first does, too; the others find in the cache what it left there: the prompts read, the
direction, the original measured. ``--runs`` of them are timed, at strengths spread over the range,
and their median stands for all but the first. Beside that stands as many first runs, each from an
empty cache. ``--whole`` runs are timed as they are without further settings: they also measure safe
look-alikes, doses, random controls and the divergence along answers. ``--processor`` counts the
seconds of processors: where other work runs on the machine, those of the clock compare nothing.
``--cache FOLDER`` lets all of it begin with a copy of that cache.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from obliteratus.pipeline.methods import settings_for
from obliteratus.store import Store
from obliteratus.studies.candidates import InMemory, InOneBatch
from obliteratus.studies.sweep import prepared

STRENGTHS = (0.4, 1.3, 0.7, 1.7, 0.2)
SAME = (
    "verify.dose=false",
    "verify.random_controls=0",
    "verify.over_refusal=0",
    "verify.sequence_prompts=2",
    "verify.sequence_tokens=1",
)
"""What VERIFY measures beyond a sweep, left out."""


def timed(cache: Path, *words: str, by_processor: bool) -> float:
    """Run a command in its own process; return its seconds, or those of the processors for it."""

    def now() -> float:
        used = os.times()
        return used.children_user + used.children_system if by_processor else time.perf_counter()

    start = now()
    done = subprocess.run(
        [sys.executable, "-m", "obliteratus.cli.main", *words],
        env={
            **os.environ,
            "OBLITERATUS_CACHE": str(cache),
            "OBLITERATUS_RUNS": str(cache.with_suffix(".sqlite")),
        },
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    return now() - start


def against_runs(asked: argparse.Namespace) -> None:
    """Print the times of the sweep and of the runs, and their ratios."""
    sets = [*asked.assignments, f"verify.text_documents={asked.documents}"]
    with tempfile.TemporaryDirectory() as folder:
        work, points = Path(folder), asked.points
        measured = partial(timed, by_processor=asked.processor)
        begins = "cache empty" if asked.cache is None else f"cache of {asked.cache.name}"
        for name in ("cache", "other") if asked.cache else ():
            shutil.copytree(asked.cache, work / name)

        def run(name: str, strength: float, same: Sequence[str] = SAME) -> float:
            chosen = [*sets, *same, f"verify.prompts={asked.prompts}", f"edit.strength={strength}"]
            words = [word for each in chosen for word in ("--set", each)]
            output = ["-m", asked.method, "-o", str(work / name), "--quiet"]
            seconds = measured(work / "cache", "obliterate", asked.model, *output, *words)
            shutil.rmtree(work / name)
            print(f"{name}: {seconds:.1f} s", flush=True)
            return seconds

        words = [word for each in sets for word in ("--set", each)]
        limits = ["--points", str(points), "--prompts", str(asked.prompts)]
        output = ["-m", asked.method, "-o", str(work / "sweep"), "--quiet"]
        swept = measured(work / "other", "sweep", asked.model, *output, *limits, *words)
        print(f"| sweep of {points} strengths, {begins} | {swept:.1f} s |", flush=True)
        first = run("first", 1.0)
        runs = [run(f"run{number}", STRENGTHS[number]) for number in range(asked.runs)]
        each = statistics.median(runs)
        print(f"| a separate run that measures the same, {begins} | {first:.1f} s |")
        print(f"| the same, cache filled by the first | {each:.1f} s |")
        _compare(f"{points} runs, one cache", first + (points - 1) * each, swept)
        _compare(f"{points} runs, each with the {begins}", points * first, swept)
        if asked.whole:
            begun = run("whole", 1.0, ())  # the cache lacks only what is measured beyond a sweep
            more = [run(f"whole{n}", STRENGTHS[n], ()) for n in range(asked.whole)]
            each = statistics.median(more)
            print(f"| a separate run that measures all, cache filled | {each:.1f} s |")
            _compare(
                f"{points} runs that measure all, one cache", begun + (points - 1) * each, swept
            )


def _compare(what: str, seconds: float, swept: float) -> None:
    print(f"| {what}, against the sweep | {seconds:.0f} s | {seconds / swept:.2f} |", flush=True)


def batches(asked: argparse.Namespace) -> None:
    """Print the seconds per strength of six strengths in one batch, and one by one, in turns."""
    settings = settings_for(
        asked.method, [*asked.assignments, f"verify.text_documents={asked.documents}"]
    )
    ready = prepared(asked.model, settings, asked.prompts, Store())
    bench, planned = ready.bench, ready.plan
    _ = bench.original
    shares = [-1.0, -0.5, 0.5, 1.0, 1.5, 2.0]
    ways = {"one batch": InOneBatch(bench, planned), "one by one": InMemory(bench, planned, "")}
    found: dict[str, list[float]] = {name: [] for name in ways}
    now = time.process_time if asked.processor else time.perf_counter
    for number in range(asked.runs):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            start = now()
            assert len(list(ways[name].measured(shares))) == len(shares)
            found[name].append((now() - start) / len(shares))
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.2f} s per strength |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--points", type=int, default=13)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--whole", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--method", default="basic")
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    asked = parser.parse_args()
    (batches if asked.batches else against_runs)(asked)


if __name__ == "__main__":
    main()
