"""What ``obliteratus detect`` finds and what it passes: edits, and all that is none.

    python benchmarks/detect.py calibrate [--seeds 5]       the thresholds, on models made here
    python benchmarks/detect.py gaps                        the widest gap of models as they are
    python benchmarks/detect.py made [--seeds 20] [ALTERATION ...]
                                                            the matrix, on other models made here
    python benchmarks/detect.py page docs/detect.md         puts the stored matrix into the page
    python benchmarks/detect.py real MODEL DIRECTIONS [ALTERATION ...]
                                                            a real model, edited along a run's own
                                                            directions.safetensors
    python benchmarks/detect.py pair MODEL BASE             two models as they are

``made`` stores its counts in benchmarks/results/detect/made.json, alteration by alteration.
The models of ``made`` are others than those on which the thresholds were chosen, and those of
``calibrate`` are of other architectures as well.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from obliteratus.analysis import change
from obliteratus.analysis.detect import CHANCE, FEWEST, GAP, Detection, detect
from obliteratus.analysis.gaps import gaps
from obliteratus.analysis.writes import LoadedWeights
from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quiet import quiet
from obliteratus.models.summon import summon
from obliteratus.pipeline.detect import detect as detect_stored
from obliteratus.release.directions_file import load_directions
from obliteratus.statistics.proportion import wilson
from obliteratus.testing.alterations import ALTERATIONS
from obliteratus.testing.altered import WIDE, WIDE_GPT2
from obliteratus.testing.planted_design import VARIANTS
from obliteratus.testing.planted_transformer import planted
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model

Make = Callable[[int], LoadedModel]
Count = tuple[int, int]


def _tiny(name: str, sizes: Mapping[str, int] | None = None) -> Make:
    @cache
    def make(seed: int) -> LoadedModel:
        return tiny_model(name, seed=seed, sizes=sizes or {})

    return make


def _planted(name: str) -> Make:
    @cache
    def make(seed: int) -> LoadedModel:
        return planted(name, seed=seed).model

    return make


CALIBRATION: Mapping[str, Make] = {
    "qwen2": _tiny("qwen2", WIDE),
    "gemma3": _tiny("gemma3_text", WIDE),
    "gpt_oss": _tiny("gpt_oss", WIDE),
    "bloom": _tiny("bloom", {"hidden_size": 64}),
    "planted with post-norms": _planted("post_norm"),
}
MADE: Mapping[str, Make] = {
    "llama": _tiny("llama", WIDE),
    "gemma2": _tiny("gemma2", WIDE),
    "mixtral": _tiny("mixtral", WIDE),
    "gpt2": _tiny("gpt2", WIDE_GPT2),
    "planted": _planted("linear"),
}
HAVE_NORMS = {"gemma2", "gemma3", "planted with post-norms"}
NEEDS_NORM = {"orthogonal before a norm"}
HAS_EMBEDDING_NORM = {"bloom"}
NEEDS_NO_EMBEDDING_NORM = {"filters (oblique)", "filters, strength 0.5"}
"""Filters cannot be taken out of an embedding with a LayerNorm behind it."""
FIRST_CALIBRATION_SEED = 100
FIRST_SEED = 200
"""Models of smaller seeds were looked at while the thresholds were chosen."""
RESULTS = Path(__file__).parent / "results" / "detect" / "made.json"
BEGIN, END = "<!-- matrix: benchmarks/detect.py page -->", "<!-- end of matrix -->"
REAL = (
    "rank 1 (basic)",
    "column norms kept",
    "strength 0.5",
    "strength 2 (inverted)",
    "requantised to 4 bits",
    "packed in 4 bits",
    "rows rescaled",
)


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description="What detect finds and passes.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("calibrate").add_argument("--seeds", type=int, default=5)
    commands.add_parser("gaps").add_argument("--seeds", type=int, default=5)
    made = commands.add_parser("made")
    made.add_argument("alterations", nargs="*", default=list(ALTERATIONS))
    made.add_argument("--seeds", type=int, default=20)
    commands.add_parser("page").add_argument("page", type=Path)
    real = commands.add_parser("real")
    real.add_argument("model")
    real.add_argument("directions", type=Path)
    real.add_argument("alterations", nargs="*", default=REAL)
    pair = commands.add_parser("pair")
    pair.add_argument("model")
    pair.add_argument("base")
    given = parser.parse_args()
    with quiet():
        if given.command == "calibrate":
            _calibrate(range(FIRST_CALIBRATION_SEED, FIRST_CALIBRATION_SEED + given.seeds))
        elif given.command == "gaps":
            _natural(given.seeds)
        elif given.command == "made":
            _made(given.alterations, range(FIRST_SEED, FIRST_SEED + given.seeds))
        elif given.command == "page":
            _page(given.page)
        elif given.command == "real":
            _real(given.model, given.directions, given.alterations)
        else:
            for base in (given.base, None):
                _say(f"{given.model}, base {base}", detect_stored(given.model, base))


def _pairs(name: str, kinds: Mapping[str, Make], seeds: Iterable[int]) -> Iterable[tuple[str, Any]]:
    """Yield the kind, and base and altered model, for every kind that the alteration concerns."""
    for kind, make in kinds.items():
        has_norms = name not in NEEDS_NORM or kind in HAVE_NORMS
        if has_norms and not (name in NEEDS_NO_EMBEDDING_NORM and kind in HAS_EMBEDDING_NORM):
            for seed in seeds:
                model = make(seed)
                yield kind, (model, ALTERATIONS[name].make(model, seed))


STATISTICS: tuple[str, ...] = ("fit", "contrast", "beyond_rows", "gap")


def _calibrate(seeds: range) -> None:
    """Print, for every threshold, what edits that are to be found and all others come to.

    Of a model it is the ``FEWEST``-th largest number among the matrices that pass the other
    thresholds, as ``FEWEST`` matrices make an edit. The table is printed after every seed, of all
    seeds so far: one takes minutes. Every model that is not called what it is is named.
    """
    figures: dict[str, dict[bool, list[float]]] = {
        name: {True: [], False: []} for name in STATISTICS
    }
    found: dict[bool, list[bool]] = {True: [], False: []}
    for seed in seeds:
        for name, alteration in ALTERATIONS.items():
            for kind, (model, other) in _pairs(name, CALIBRATION, [seed]):
                seen, is_edit = (
                    detect(LoadedWeights(other), LoadedWeights(model)),
                    alteration.is_edit,
                )
                if alteration.with_base == is_edit:
                    found[is_edit].append(_is_found(seen))
                    for key, value in _margins(seen).items():
                        figures[key][is_edit].append(value)
                    if _is_found(seen) != is_edit:
                        print(f"mistaken: {name}, {kind}, seed {seed}: {seen.findings.headline}")
                if alteration.alone == is_edit and (size := _gap(other)) is not None:
                    figures["gap"][is_edit].append(size)
                    if (size >= GAP) != is_edit:
                        print(
                            f"mistaken without a base: {name}, {kind}, seed {seed}: gap {size:.2f}"
                        )
        print(f"seeds {seeds[0]} to {seed}")
        _print_calibration(figures, found)


def _print_calibration(
    figures: Mapping[str, Mapping[bool, Sequence[float]]], found: Mapping[bool, Sequence[bool]]
) -> None:
    print("| statistic | threshold | no edit: 95 %, 99 %, most | edit: least, 1 %, 5 % | n |")
    print("|---|---|---|---|---|")
    limits = dict(
        zip(STATISTICS, (change.FIT, change.CONTRAST, change.BEYOND_ROWS, GAP), strict=True)
    )
    for key, both in figures.items():
        others = np.quantile(both[False], [0.95, 0.99, 1])
        edits = np.quantile(both[True], [0, 0.01, 0.05])
        cells = (", ".join(f"{each:.3g}" for each in row) for row in (others, edits))
        print(f"| {key} | {limits[key]} | {' | '.join(cells)} | {[len(both[k]) for k in both]} |")
    rates = (f"{key}: {_rate(_count(each))}" for key, each in found.items())
    print("found with the base:", *rates, flush=True)


def _margins(seen: Detection) -> dict[str, float]:
    arrays = {key: np.asarray(each) for key, each in seen.findings.arrays.items()}
    unlikely = arrays["p_value"] * len(arrays["p_value"]) <= CHANCE
    passes = {
        "fit": arrays["fit"] >= change.FIT,
        "contrast": arrays["contrast"] >= change.CONTRAST,
        "beyond_rows": arrays["beyond_rows"] >= change.BEYOND_ROWS,
    }
    found: dict[str, float] = {}
    for key in passes:
        others = [passes[other] for other in passes if other != key]
        left = np.sort(arrays[key][np.logical_and.reduce([unlikely, *others])])
        found[key] = float(left[-FEWEST]) if len(left) >= FEWEST else 0.0
    return found


def _gap(model: LoadedModel) -> float | None:
    found = gaps(LoadedWeights(model))
    return max((each.size for each in found), default=None)


def _natural(seeds: int) -> None:
    kinds = {
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
    print("quantiles 50, 95, 99, 100 %:", np.quantile(sizes, [0.5, 0.95, 0.99, 1]).round(3))
    print(f"at least {GAP}: {_rate(_count((sizes >= GAP).tolist()))}")
    for size, name, window in sorted(widest, reverse=True)[:8]:
        print(f"  {size:.3f} {name}, {window}")


def _made(names: Sequence[str], seeds: range) -> None:
    for name in names:
        with_base: dict[str, list[bool]] = {}
        alone: dict[str, list[bool]] = {}
        for kind, (model, other) in _pairs(name, MADE, seeds):
            seen = detect(LoadedWeights(other), LoadedWeights(model))
            with_base.setdefault(kind, []).append(_is_found(seen))
            by_itself = _alone(other)
            if by_itself is not None:
                alone.setdefault(kind, []).append(by_itself)
        stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        stored[name] = {
            "is_edit": ALTERATIONS[name].is_edit,
            "with_base": {kind: _count(each) for kind, each in with_base.items()},
            "alone": {kind: _count(each) for kind, each in alone.items()},
        }
        print(_row(name, stored[name]), flush=True)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        ordered = {key: stored[key] for key in ALTERATIONS if key in stored}
        work = RESULTS.with_suffix(f".{os.getpid()}")  # two processes may share the alterations
        work.write_text(json.dumps(ordered, indent=1) + "\n")
        work.replace(RESULTS)


def _page(page: Path) -> None:
    """Put the stored matrix between the marks of ``page``."""
    stored = json.loads(RESULTS.read_text())
    lines: list[str] = []
    for is_edit, title in ((True, "edits"), (False, "no edits")):
        rows = {name: row for name, row in stored.items() if row["is_edit"] == is_edit}
        lines += ["", f"| {title} | called edited, with the base | without |", "|---|---|---|"]
        lines += [_row(name, row) for name, row in rows.items()]
        if not is_edit:
            every = {key: _pooled(row[key] for row in rows.values()) for key in COLUMNS}
            lines.append(_row("**all of these**", every))
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, *lines, "", END + after]))


COLUMNS = ("with_base", "alone")


def _row(name: str, row: Mapping[str, Any]) -> str:
    return f"| {name} | {' | '.join(_cell(row[key]) for key in COLUMNS)} |"


def _cell(counts: Mapping[str, Count]) -> str:
    """Return the rate over all kinds of model, and where it is neither 0 nor 1 that of each."""
    found, total = _pooled([counts])[""]
    text = _rate((found, total))
    if len(counts) < 2 or found in (0, total):
        return text
    return f"{text}: " + ", ".join(f"{kind} {a}/{b}" for kind, (a, b) in counts.items())


def _pooled(rows: Iterable[Mapping[str, Count]]) -> dict[str, Count]:
    every = [count for row in rows for count in row.values()]
    return {"": (sum(found for found, _ in every), sum(total for _, total in every))}


def _real(name: str, path: Path, alterations: Sequence[str]) -> None:
    model, directions = summon(name), load_directions(path)
    _say(f"{name} as it is, alone", detect(LoadedWeights(model)))
    for alteration in alterations:
        each = ALTERATIONS[alteration]
        own = {"directions": directions} if each.is_edit else {}
        other = LoadedWeights(each.make(model, 0, **own))
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


def _count(found: Sequence[bool]) -> Count:
    return sum(found), len(found)


def _rate(count: Count) -> str:
    rate = wilson(*count)
    low, high = (100 * end for end in rate.interval)
    return f"{count[0]}/{count[1]} ({low:.0f} to {high:.0f} %)"


if __name__ == "__main__":
    main()
