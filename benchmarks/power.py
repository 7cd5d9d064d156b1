"""How often three analyses find what is planted, and how often they find what is not there.

    python benchmarks/power.py robustness|suite|transfer [--first 5000] [--models 20] [--draws 5]

Every model, its prompts and its random directions are drawn by a seed of their own, from ``first``
on; an experiment is a draw of some of a model's prompts and random directions, as in the tests.
Draws of one model are alike, so models count for more than draws.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from obliteratus.analysis.defense_robustness import is_self_repair
from obliteratus.analysis.entanglement import cost_estimates
from obliteratus.analysis.evaluation_suite import behaviour_changes, stream_changes
from obliteratus.analysis.new_directions import reaction_estimates
from obliteratus.analysis.self_repair import repair_estimates
from obliteratus.analysis.transferred import WAYS, transfer_estimates
from obliteratus.models.quiet import quiet
from obliteratus.statistics.estimate import Estimate
from obliteratus.testing.planted_prompts import Triggers
from obliteratus.testing.planted_transformer import PlantedTransformer, planted
from obliteratus.testing.robustness_draws import robustness_pool, some_of_robustness
from obliteratus.testing.suite_draws import some_of_suite, suite_pool
from obliteratus.testing.transfer_draws import (
    WEAK,
    some_of_transfer,
    transfer_pool,
    write_neutral,
)

Verdicts = Mapping[str, bool]
APART = 100_000  # between the seeds of two models


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description="How often analyses find what is planted.")
    parser.add_argument("what", choices=["robustness", "suite", "transfer"])
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--draws", type=int, default=5)
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.models)
    every = {"robustness": _robustness, "suite": _suite, "transfer": _transfer}
    with quiet():
        for planted_there, experiments in every[given.what](given.draws).items():
            found = [each for seed in seeds for each in experiments(seed)]
            for name in found[0]:
                count = sum(each[name] for each in found)
                print(f"| {planted_there} | {name} | {count} of {len(found)} |", flush=True)


Experiments = Callable[[int], Iterator[Verdicts]]


def _supported(estimates: Mapping[str, Estimate]) -> dict[str, bool]:
    return {name: each.verdict == "supported" for name, each in estimates.items()}


def _robustness(draws: int) -> dict[str, Experiments]:
    def of(variant: str, *, is_inert: bool = False) -> Experiments:
        def experiments(seed: int) -> Iterator[Verdicts]:
            pool = robustness_pool(variant, is_inert=is_inert, seed=seed)
            for draw in range(draws):
                few = some_of_robustness(pool, draw)
                repair = repair_estimates(few.repair, seed=draw)
                reaction = reaction_estimates(few.reaction, seed=draw)
                seen = _supported({**repair, **reaction, **cost_estimates(few.costs, seed=draw)})
                names = ("direct_effect", "repair_by_blocks", "new_direction",
                         "new_direction_takes_over", "skill_lost", "entanglement")  # fmt: skip
                yield {
                    "self-repair": is_self_repair({**repair, **reaction}),
                    **{name: seen.get(name, False) for name in names},
                }

        return experiments

    return {
        **{name: of(name) for name in ("backup", "linear", "decodable_only", "entangled")},
        "null, inert": of("null", is_inert=True),
    }


def _suite(draws: int) -> dict[str, Experiments]:
    def of(variant: str, *, is_inert: bool = False) -> Experiments:
        def experiments(seed: int) -> Iterator[Verdicts]:
            pool = suite_pool(variant, is_inert=is_inert, seed=seed)
            for draw in range(draws):
                few = some_of_suite(pool, draw)
                yield _supported(
                    {**behaviour_changes(few, seed=draw), **stream_changes(few, seed=draw)}
                )

        return experiments

    return {
        "linear": of("linear"),
        "null, inert": of("null", is_inert=True),
        "decodable_only, inert": of("decodable_only", is_inert=True),
    }


Pair = Callable[[int], tuple[PlantedTransformer, PlantedTransformer]]


def _pairs(draws: int, pair: Pair, triggers: Triggers = "none") -> Experiments:
    def experiments(seed: int) -> Iterator[Verdicts]:
        with tempfile.TemporaryDirectory() as folder:
            text = write_neutral(Path(folder) / "neutral.txt")
            acted = transfer_pool(*pair(seed), text, triggers=triggers, seed=seed).acted
        for draw in range(draws):
            found = transfer_estimates(some_of_transfer(acted, draw), seed=draw, reliable=True)
            seen = {way: found[way].verdict == "supported" for way in WAYS}
            yield {**seen, "either": any(seen.values())}

    return experiments


def _weak(seed: int) -> tuple[PlantedTransformer, PlantedTransformer]:
    one, other = (planted("linear", seed=each, effect=WEAK) for each in (seed, seed + APART))
    return one, other


def _transfer(draws: int) -> dict[str, Experiments]:
    def two(one: str, other: str, triggers: Triggers, **changes: Any) -> Experiments:
        return _pairs(
            draws,
            lambda seed: (planted(one, seed=seed), planted(other, seed=seed + APART, **changes)),
            triggers,
        )

    return {
        f"linear to linear, effect {WEAK}": _pairs(draws, _weak),
        "linear to null": two("linear", "null", "independent"),
        "linear to decodable_only": two("linear", "decodable_only", "harmful"),
        "sink to null with a sink": two("sink", "null", "independent", has_sink=True),
    }


if __name__ == "__main__":
    main()
