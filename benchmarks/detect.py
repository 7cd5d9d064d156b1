"""What ``obliteratus detect`` finds and what it passes: edits, and all that is none.

    python benchmarks/detect.py made [--seeds 20]      models made here: planted and tiny ones
    python benchmarks/detect.py gaps [--seeds 5]       the widest gap of models that nobody edited
    python benchmarks/detect.py real MODEL [NAME ...]  a model and alterations of it
    python benchmarks/detect.py pair MODEL BASE        two models as they are

``made`` prints, for each alteration, how many of the models are called edited, with the base and
without it, and Wilson's 95 % interval.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from obliteratus.analysis.detect import GAP, Detection, detect
from obliteratus.analysis.gaps import gaps
from obliteratus.analysis.writes import LoadedWeights
from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quiet import quiet
from obliteratus.models.summon import summon
from obliteratus.pipeline.detect import detect as detect_stored
from obliteratus.statistics.proportion import wilson
from obliteratus.testing.altered import ALTERATIONS, WIDE, WIDE_GPT2
from obliteratus.testing.planted_design import VARIANTS
from obliteratus.testing.planted_transformer import planted
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model

MADE: dict[str, Callable[[int], LoadedModel]] = {
    "llama": lambda seed: tiny_model("llama", seed=seed, sizes=WIDE),
    "gemma2 (post-norms)": lambda seed: tiny_model("gemma2", seed=seed, sizes=WIDE),
    "mixtral (experts)": lambda seed: tiny_model("mixtral", seed=seed, sizes=WIDE),
    "gpt2 (Conv1D, tied)": lambda seed: tiny_model("gpt2", seed=seed, sizes=WIDE_GPT2),
    "planted": lambda seed: planted("linear", seed=seed).model,
}
REAL = (
    "rank 1",
    "rank 3",
    "strength 0.3",
    "strength 2 (reflection)",
    "norm row",
    "saved in bfloat16",
    "requantised to int8",
    "requantised to 4 bits",
    "requantised to 3 bits",
    "rounded to bfloat16",
    "packed in 4 bits",
)
NEEDS_NORM = {"orthogonal before a norm"}


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description="What detect finds and passes.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, seeds in (("made", 20), ("gaps", 5)):
        commands.add_parser(name).add_argument("--seeds", type=int, default=seeds)
    real = commands.add_parser("real")
    real.add_argument("model")
    real.add_argument("alterations", nargs="*", default=REAL)
    pair = commands.add_parser("pair")
    pair.add_argument("model")
    pair.add_argument("base")
    arguments = parser.parse_args()
    with quiet():
        if arguments.command == "made":
            _made(arguments.seeds)
        elif arguments.command == "gaps":
            _natural(arguments.seeds)
        elif arguments.command == "real":
            _real(arguments.model, arguments.alterations)
        else:
            for base in (arguments.base, None):
                _say(f"{arguments.model}, base {base}", detect_stored(arguments.model, base))


def _made(seeds: int) -> None:
    print(f"| alteration | {' | '.join(f'{name} | alone' for name in MADE)} |")
    print("|---" * (1 + 2 * len(MADE)) + "|")
    for name, alteration in ALTERATIONS.items():
        cells: list[str] = []
        for kind, make in MADE.items():
            if name in NEEDS_NORM and "post-norms" not in kind:
                cells += ["", ""]
                continue
            found: list[tuple[bool, bool | None]] = []
            for seed in range(seeds):
                model = make(seed)
                other = alteration.make(model, seed)
                with_base = detect(LoadedWeights(other), LoadedWeights(model))
                found.append((_is_found(with_base), _alone(other)))
            alone = [each for _, each in found if each is not None]
            cells += [_rate([each for each, _ in found]), _rate(alone) if alone else "no window"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _natural(seeds: int) -> None:
    kinds: dict[str, Callable[[int], LoadedModel]] = {
        **{f"planted {name}": _planted(name) for name in VARIANTS},
        **{name: _tiny(name) for name in MODEL_TYPES},
    }
    widest: list[tuple[float, str, str]] = []
    without: list[str] = []
    for name, make in kinds.items():
        for seed in range(seeds):
            found = gaps(LoadedWeights(make(seed)))
            if not found:
                without.append(name)
                continue
            gap = max(found, key=lambda each: each.size)
            widest.append((gap.size, f"{name}, seed {seed}", gap.window))
    sizes = np.array([each[0] for each in widest])
    print(f"{len(sizes)} models, {len(without)} without a window: {sorted(set(without))}")
    print(
        "quantiles 50, 90, 95, 99, 100 %:", np.quantile(sizes, [0.5, 0.9, 0.95, 0.99, 1]).round(3)
    )
    print(f"at least {GAP}: {_rate((sizes >= GAP).tolist())}")
    for size, name, window in sorted(widest, reverse=True)[:8]:
        print(f"  {size:.3f} {name}, {window}")


def _planted(name: str) -> Callable[[int], LoadedModel]:
    return lambda seed: planted(name, seed=seed).model


def _tiny(name: str) -> Callable[[int], LoadedModel]:
    return lambda seed: tiny_model(name, seed=seed)


def _real(name: str, alterations: Sequence[str]) -> None:
    model = summon(name)
    _say(f"{name} as it is, alone", detect(LoadedWeights(model)))
    for alteration in alterations:
        other = LoadedWeights(ALTERATIONS[alteration].make(model, 0))
        _say(f"{name}, {alteration}, base", detect(other, LoadedWeights(model)))
        _say(f"{name}, {alteration}, alone", detect(other))


def _say(what: str, found: Detection) -> None:
    print(f"{what}: {found.verdict}. {found.findings.headline}")
    for key, each in found.findings.estimates.items():
        low, high = each.interval
        print(f"    {key:<9} {each.value:.3g} ({low:.3g} to {high:.3g}), null {each.null}")
    print(flush=True)


def _alone(model: LoadedModel) -> bool | None:
    """Say whether an edit is found without the base; None where no window has a spectrum."""
    try:
        return _is_found(detect(LoadedWeights(model)))
    except MeasurementError:
        return None


def _is_found(found: Detection) -> bool:
    return found.verdict == "edit found"


def _rate(found: Sequence[bool]) -> str:
    rate = wilson(sum(found), len(found))
    low, high = (100 * end for end in rate.interval)
    return f"{sum(found)}/{len(found)} ({low:.0f} to {high:.0f} %)"


if __name__ == "__main__":
    main()
