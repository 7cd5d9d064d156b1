"""What steering costs: milliseconds per generated token with and without it.

    python benchmarks/steering.py smollm2-refuser [--repeats N] [--new-tokens N] [--clock cpu]

Greedy, 64 new tokens, batches of 1 and 8. The CPU clock counts what this process computes, whatever
else the machine does; set OMP_NUM_THREADS=1 with it. Each kind steers along one direction at every
layer and the embedding. The kinds take turns, so a slow minute of the machine meets all of them;
printed are the median of the repeats and the median of the ratios to the unsteered run of the same
turn.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.operator.steering import Dial, steering
from obliteratus.prompts.builtin import refusal
from obliteratus.testing.keystone import random_directions

BATCHES = (1, 8)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Steered = Callable[[], contextlib.AbstractContextManager[Dial | None]]


def kinds(model: LoadedModel) -> dict[str, Steered]:
    """Return what is timed: nothing, and every kind of steering along one random direction."""
    directions = random_directions(model)
    means = {layer: rows[0] for layer, rows in directions.basis.items()}
    return {
        "none": contextlib.nullcontext,
        "projection": lambda: steering(model, directions, kind="projection"),
        "write_projection": lambda: steering(model, directions, kind="write_projection"),
        "addition": lambda: steering(model, directions, kind="addition"),
        "affine": lambda: steering(model, directions, kind="affine", means=means),
        "projection, strength 0": lambda: steering(
            model, directions, kind="projection", strength=0.0
        ),
    }


def prompts(model: LoadedModel, rows: int) -> Tensor:
    """Return ``rows`` harmless prompts, cut to the shortest so that none is padded."""
    ids = encode(model, [prompt.text for prompt in refusal().harmless[:rows]]).ids
    length = min(len(row) for row in ids)
    return torch.tensor([list(row[-length:]) for row in ids], device=model.device)


@torch.no_grad()
def milliseconds_per_token(
    model: LoadedModel, ids: Tensor, steered: Steered, new_tokens: int, clock: str
) -> float:
    """Return the time of one generation, the prompt included, over its new tokens per row."""
    with steered():
        start = CLOCKS[clock]()
        model.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return 1e3 * (CLOCKS[clock]() - start) / new_tokens


def main() -> None:
    """Time every kind at every batch size and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    how = (arguments.new_tokens, arguments.clock)
    model = summon(arguments.model)
    timed = kinds(model)
    print(f"{arguments.model}, {torch.get_num_threads()} threads, {arguments.repeats} repeats")
    print(f"{'rows':>4}  {'steering':<22} {'ms/token':>9} {'ratio':>6}")
    for rows in BATCHES:
        ids = prompts(model, rows)
        milliseconds_per_token(model, ids, timed["none"], *how)  # the first run warms the caches up
        times: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(arguments.repeats):
            for name, steered in timed.items():
                times[name].append(milliseconds_per_token(model, ids, steered, *how))
        for name, found in times.items():
            ratio = statistics.median(
                one / base for one, base in zip(found, times["none"], strict=True)
            )
            print(f"{rows:>4}  {name:<22} {statistics.median(found):>9.2f} {ratio:>6.3f}")


if __name__ == "__main__":
    main()
