"""What causal tracing costs: every place patched exactly, and attribution by position.

    python benchmarks/tracing.py smollm2-refuser [--pairs N] [--repeats N]

Both begin with the pairs as token ids and end with effects of every head and MLP in both
directions. Attribution is timed with the two plain runs of every pair that it needs, which patching
needs as well. Refusal tokens are calibrated before, on the fit prompts, and are in no time.
"""

import argparse
import statistics
import time

from obliteratus.analysis.parts import parts, places
from obliteratus.analysis.patching import Patcher
from obliteratus.analysis.tracing import Pairs, aligned_pairs, first_order, plain_runs, trace
from obliteratus.events import without_progress
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import calibrate
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.split import split


def patcher_of(model: LoadedModel, pairs: Pairs) -> Patcher:
    """Return what runs ``pairs``, scored by the model's own refusal tokens."""
    fit = split(refusal()).fit
    sides = [
        last_hidden(model, encode(model, [prompt.text for prompt in side]), task="calibrate")
        for side in (fit.harmful, fit.harmless)
    ]
    return Patcher(model, head_of(model), calibrate(model, *sides), parts(model), pairs.prefix)


def attribute(patcher: Patcher, pairs: Pairs) -> None:
    """Estimate every place by position in both directions."""
    found = places(patcher.model)
    for batch in patcher.batches([len(row) for row in pairs.harmful]):
        first_order(patcher, found, pairs, batch, plain_runs(patcher, pairs, batch))


def main() -> None:
    """Time attribution ``--repeats`` times and patching once; print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    model = summon(given.model)
    pairs = aligned_pairs(model, split(refusal()).select, count=given.pairs)
    with without_progress():
        patcher = patcher_of(model, pairs)
        seconds: list[float] = []
        for _ in range(given.repeats):
            start = time.perf_counter()
            attribute(patcher, pairs)
            seconds.append(time.perf_counter() - start)
        print(f"{len(pairs.harmful)} pairs, {len(places(model))} places, both directions")
        print(
            f"attribution by position: {statistics.median(seconds):.1f} s "
            f"({min(seconds):.1f} to {max(seconds):.1f}, {given.repeats} times)",
            flush=True,
        )
        start = time.perf_counter()
        trace(patcher, places(model), pairs)
        print(f"patching and attribution: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
