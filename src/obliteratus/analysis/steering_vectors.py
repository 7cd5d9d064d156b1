"""Does the direction steer? Dose and response, in units of ‖δ‖, against random vectors as long.

At the layer where the direction was read, α ‖δ‖ r is added at every token: on harmless prompts with
α > 0, which should bring refusal about, and on harmful ones with α < 0, which should take it away;
at every layer the projection on r is taken out of harmful prompts in part or whole. Every one of
these is done with random vectors of the same length too: any vector of that length disturbs a
model, and a direction that does no better is not what it refuses by. Steering is by hooks; that
nothing of them is left is checked at the end, bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import NEGLIGIBLE
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.intervening import random_rows, scores, selected
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.resampling import SIGNIFICANT, ends, prediction_bound, weights
from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.models.chat import Encoded
from obliteratus.operator.steering import Kind, steering
from obliteratus.pictures.spec import Line, Panel, Picture
from obliteratus.probe.resume import Beginning, first_behind
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.multiple import holm
from obliteratus.statistics.permutation import sign_flip

DOSES = (0.5, 1.0, 2.0)  # of ‖δ‖: half of what tells the classes apart, all of it, and twice
REMOVALS = (0.5, 1.0)
ASKED = 1.0
"""The dose at which the questions are answered: δ itself, or all of the projection."""
RANDOM = 6
"""Random vectors: five degrees of freedom for the scatter between them."""
STREAM = 0x73746565  # added to the seed, so that no other use of it has drawn the same vectors
WAYS: Mapping[str, str] = {
    "added": "added to harmless prompts, it raises refusal by",
    "subtracted": "subtracted from harmful ones, it lowers refusal by",
    "removed": "taken out at every layer, it lowers refusal by",
}


@dataclass(frozen=True)
class Responses:
    """Changes of refusal log-odds, signed so that above 0 the vector does what it is said to do.

    Vector 0 is the direction, the others are random. ``added`` are rises on harmless prompts,
    ``subtracted`` and ``removed`` are falls on harmful ones.
    """

    added: Float64[np.ndarray, "vector dose prompt"]
    subtracted: Float64[np.ndarray, "vector dose prompt"]
    removed: Float64[np.ndarray, "vector strength prompt"]


def steering_vectors(responses: Responses, *, layer: Layer, seed: int) -> Findings:
    """Return the dose–response curves, and whether the direction steers beyond random vectors.

    Each way is tested at its dose ``ASKED``: the mean must lie beyond what a further random vector
    stays below (a prediction bound at 5 % over all three), by a sign-flip test over prompts with
    Holm's correction.

    Raises:
        MeasurementError: fewer than two prompts, or fewer than three random vectors.
    """
    arrays: dict[str, np.ndarray] = {}
    asked: dict[str, tuple[Float64[np.ndarray, " prompt"], float]] = {}
    for way in WAYS:
        doses = REMOVALS if way == "removed" else DOSES
        curves: Float64[np.ndarray, "vector dose prompt"] = getattr(responses, way)
        means = curves.mean(axis=2)
        level = SIGNIFICANT / len(WAYS)
        bounds = [prediction_bound(column, level=level) for column in means[1:].T]
        sampled = weights(curves.shape[2], np.random.default_rng(seed)) @ curves[0].T
        low, high = ends(sampled)
        arrays |= {
            f"{way}_doses": np.array(doses),
            way: means[0],
            f"{way}_low": low,
            f"{way}_high": high,
            f"{way}_random": means[1:],
            f"{way}_bound": np.array(bounds),
        }
        place = doses.index(ASKED)
        asked[way] = curves[0, place], bounds[place]
    estimates = _estimates(asked, seed)
    return Findings(
        module="steering_vectors",
        headline=_headline(estimates, layer),
        estimates=estimates,
        arrays=arrays,
        facts={"layer": layer, "random_vectors": len(responses.added) - 1},
    )


def _estimates(
    asked: Mapping[str, tuple[Float64[np.ndarray, " prompt"], float]], seed: int
) -> dict[str, Estimate]:
    tests = {way: sign_flip(values - bound, seed=seed) for way, (values, bound) in asked.items()}
    p = holm({way: test.p_value for way, test in tests.items()})
    found: dict[str, Estimate] = {}
    for way, (values, bound) in asked.items():
        low, high = (end + bound for end in tests[way].effect.interval)
        value = float(values.mean())
        verdict: Verdict = "undetermined"
        if value > bound and p[way] < SIGNIFICANT:
            verdict = "supported"
        elif high < max(bound, NEGLIGIBLE):
            verdict = "not_supported"
        found[way] = replace(
            tests[way].effect, value=value, interval=(low, high), null=bound, verdict=verdict
        )
    return found


def _headline(estimates: Mapping[str, Estimate], layer: Layer) -> str:
    where = f"the direction of layer {layer}"
    does = [way for way, each in estimates.items() if each.verdict == "supported"]
    if not does:
        best = max(estimates.values(), key=lambda each: each.value)
        return (
            f"{where[0].upper()}{where[1:]} does not steer refusal beyond random vectors of its "
            f"length: at most {best.value:.1f} log-odds, where they reach {best.null or 0:.1f}."
        )
    words = [
        f"{WAYS[way]} {each.value:.1f} ({each.interval[0]:.1f} to {each.interval[1]:.1f}) log-odds"
        for way, each in estimates.items()
        if way in does
    ]
    bounds = ", ".join(f"{estimates[way].null or 0:.1f}" for way in does)
    return (
        f"Steering with {where} works beyond random vectors: {'; '.join(words)} (a random vector "
        f"stays below {bounds})."
    )


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the response to every dose beside that to random vectors."""
    signs = {"added": 1.0, "subtracted": -1.0, "removed": -1.0}
    titles = {
        "added": "harmless prompts, added: dose in ‖δ‖",
        "subtracted": "harmful prompts, subtracted: dose in ‖δ‖",
        "removed": "harmful prompts, projection taken out: share",
    }
    panels: list[Panel] = []
    for way, sign in signs.items():
        arrays = found.arrays

        def curve(name: str, sign: float = sign) -> tuple[float, ...]:
            return (0.0, *(sign * found.arrays[name]).tolist())

        x = (0.0, *arrays[f"{way}_doses"].tolist())
        ends_of = (curve(f"{way}_low"), curve(f"{way}_high"))[:: int(sign)]
        marks = [
            Line(
                "random vectors" if row == 0 else "",
                x,
                (0.0, *(sign * values).tolist()),
                role="muted",
                dashed=True,
            )
            for row, values in enumerate(arrays[f"{way}_random"])
        ]
        marks.append(Line("the direction", x, curve(way), *ends_of, role="refusal"))
        panels.append(Panel(tuple(marks), titles[way], "Δ log-odds"))
    return (
        Picture(
            "Dose and response",
            f"Change of the refusal log-odds under steering at layer {found.facts['layer']}, with "
            "95 % intervals over prompts, beside random vectors of the same length.",
            tuple(panels),
            shares_x=False,
        ),
    )


def respond(
    bench: Bench, directions: Directions, *, vectors: int = RANDOM, seed: int = 0
) -> Responses:
    """Steer the bench's prompts with the direction and with random ``vectors`` of its length.

    Raises:
        MeasurementError: afterwards the model does not give, bit for bit, what it gave before.
    """
    layer, row = selected(directions)
    sides = bench.subset.harmful, bench.subset.harmless
    before = [_scores(bench, side) for side in sides]
    start = first_behind(layer)
    begun = [Beginning(bench.model, side, [start]) for side in sides]
    length = directions.scale[layer]
    generator = torch.Generator().manual_seed(STREAM + seed)
    shapes: dict[Layer, int] = {place: len(rows) for place, rows in directions.basis.items()}
    pushes = [Directions({layer: row[None]}, {layer: length}, directions.method)]
    removals = [directions]
    for _ in range(vectors):
        drawn = random_rows(max(shapes.values()), len(row), generator)
        pushes.append(Directions({layer: drawn[:1]}, {layer: length}, "random"))
        every: dict[Layer, Tensor] = {place: drawn[:rank] for place, rank in shapes.items()}
        removals.append(Directions(every, directions.scale, "random"))
    harmful, harmless = sides
    found: dict[str, list[list[np.ndarray]]] = {way: [] for way in WAYS}
    pairs = zip(pushes, removals, strict=True)
    for push, removal in track(pairs, task="steer", total=len(pushes), unit="vectors"):
        with begun[1].skipped(start):
            up = [_steered(bench, harmless, push, "addition", dose) for dose in DOSES]
        with begun[0].skipped(start):
            down = [_steered(bench, harmful, push, "addition", -dose) for dose in DOSES]
        out = [_steered(bench, harmful, removal, "projection", share) for share in REMOVALS]
        found["added"].append([each - before[1] for each in up])
        found["subtracted"].append([before[0] - each for each in down])
        found["removed"].append([before[0] - each for each in out])
    after = [_scores(bench, side) for side in sides]
    if not all(np.array_equal(one, other) for one, other in zip(before, after, strict=True)):
        raise MeasurementError(
            "the model does not give what it gave before it was steered: something else changed "
            "it meanwhile. Run this analysis on a model that nothing else uses."
        )
    return Responses(**{way: np.array(values) for way, values in found.items()})


def _steered(
    bench: Bench, encoded: Encoded, directions: Directions, kind: Kind, strength: float
) -> Float64[np.ndarray, " prompt"]:
    with steering(bench.model, directions, kind=kind, strength=strength):
        return _scores(bench, encoded)


def _scores(bench: Bench, encoded: Encoded) -> Float64[np.ndarray, " prompt"]:
    return scores(bench.model, bench.head, bench.tokens, encoded)


def _run(bench: Bench) -> Findings:
    layer, _ = selected(bench.directions)
    responses = respond(bench, bench.directions, seed=bench.seed)
    return steering_vectors(responses, layer=layer, seed=bench.seed)


ANALYSES.register("steering_vectors")(
    Analysis(
        title="Steering vectors",
        question="Does adding the direction bring refusal about, and does taking it away end it, "
        "more than random vectors of its length do?",
        method="α ‖δ‖ r is added at the layer it was read at, to harmless prompts (α > 0) and to "
        "harmful ones (α < 0), and its projection is taken out at every layer; refusal log-odds "
        "by dose, reversible to the last bit.",
        null="6 random vectors of the same length at every dose: a prediction bound for a seventh",
        source="2308.10248, 2312.06681, 2406.11717; bound: Hahn 1969",
        cost="56 forward passes of 32 prompts of one class",
        run=_run,
        pictures=pictures,
    )
)
