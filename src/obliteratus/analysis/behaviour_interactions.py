"""How do behaviours interact: do they share directions, and what does removing one do to another?

For every behaviour the pair differences of its fit prompts are read at one layer. The cosine of two
of them is that of their means without noise: no prompt meets itself in an inner product, so few
prompts in many dimensions do not make directions look unlike or short. A cosine says where two
directions point, not what they do. So each is taken out of every write, and the answers that show
every other behaviour are read: by how many nats per token are they still likelier than answers to
the same prompts that do not? Random directions out, as close to the mean of the stream, say what
any removal does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.place import chosen_place
from obliteratus.analysis.preference import Choice, choices, preference
from obliteratus.analysis.products import Groups, cosines, percentiles
from obliteratus.analysis.resampling import SIGNIFICANT, prediction_bound
from obliteratus.analysis.turned import ablated, another_out, out
from obliteratus.errors import MeasurementError
from obliteratus.events import track, without_progress
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.measure.head import head_of
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.pictures.spec import Heat, Panel, Picture
from obliteratus.probe.forward import forward_batches
from obliteratus.prompts.split import split
from obliteratus.prompts.spread import limited
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.multiple import holm
from obliteratus.statistics.permutation import sign_flip

PAIRS = 64  # of each behaviour: a cosine is then good to about 0.1
CHOICES = 16  # prompts of each behaviour with an answer of both kinds
RANDOM = 5
RESAMPLES = 999
UNRELATED = 0.2
"""A cosine that surely lies within this of 0 is that of two directions of their own."""
NEGLIGIBLE = 0.02
"""Nats per token: a change of 2 % in how probable a token is."""
STREAM = 0x62656861  # added to the seed, so that no other use of it has drawn the same directions


@dataclass(frozen=True)
class Interaction:
    """Pair differences of every behaviour, and what every removal does to its answers.

    ``changes[b]`` are falls of the preference for showing behaviour b: row a with the direction of
    behaviour a out, the last ``RANDOM`` rows with random ones out. ``left_out`` are behaviours
    whose prompts are no pairs, or that have too few labelled answers.
    """

    names: tuple[str, ...]
    differences: tuple[Float64[np.ndarray, "_ d_model"], ...]
    changes: tuple[Float64[np.ndarray, "removal _"], ...]
    left_out: tuple[str, ...] = ()


def behaviour_interactions(seen: Interaction, *, layer: Layer, seed: int) -> Findings:
    """Return cosines and causal cross-effects of all behaviours, each with its null.

    A cosine is supported where its 95 % interval leaves out 0, an effect where it is beyond what a
    further random direction does and differs from 0 over prompts (sign flips, Holm over all).

    Raises:
        MeasurementError: fewer than two behaviours, or fewer than three random directions.
    """
    if len(seen.names) < 2:
        raise MeasurementError(
            f"behaviours interact where there are two, and there is {len(seen.names)} with pairs "
            "and labelled answers. Install another, or leave this analysis out with --modules."
        )
    cosine, low, high = _cosines(seen, seed)
    effect, bounds, effects = _effects(seen, seed)
    estimates: dict[str, Estimate] = {}
    for row, one in enumerate(seen.names):
        for column, other in enumerate(seen.names[:row]):
            n = len(seen.differences[row]) + len(seen.differences[column])
            ends = float(low[row, column]), float(high[row, column])
            estimates[f"cosine of {other} and {one}"] = _cosine(cosine[row, column], ends, n, seed)
    estimates |= effects
    return Findings(
        module="behaviour_interactions",
        headline=_headline(seen, estimates),
        estimates=estimates,
        arrays={
            "cosine": np.clip(cosine, -1, 1),
            "cosine_low": np.clip(low, -1, 1),
            "cosine_high": np.clip(high, -1, 1),
            "effect": effect,
            "bound": bounds,
        },
        facts={
            "behaviours": list(seen.names),
            "left_out": list(seen.left_out),
            "layer": layer,
        },
    )


def _cosines(
    seen: Interaction, seed: int
) -> tuple[
    Float64[np.ndarray, "name name"],
    Float64[np.ndarray, "name name"],
    Float64[np.ndarray, "name name"],
]:
    units = np.concatenate(seen.differences)
    owner = np.repeat(np.arange(len(seen.names)), [len(each) for each in seen.differences])
    members = (np.arange(len(seen.names))[:, None] == owner).astype(np.float64)
    groups = Groups(units @ units.T, members, None)
    found = cosines(groups.corrected(np.ones(len(units))))
    drawn = groups.resampled(np.random.default_rng(seed), RESAMPLES)
    low, high = percentiles(cosines(groups.corrected(drawn)))
    return found, np.fmin(low, found), np.fmax(high, found)


def _cosine(value: float, ends: tuple[float, float], n: int, seed: int) -> Estimate:
    if not np.isfinite([value, *ends]).all():  # a direction is gone without its noise
        return Estimate(0.0, (-1.0, 1.0), n, 0.0, seed)
    low, high = np.clip(ends, -1, 1).tolist()
    verdict: Verdict = "undetermined"
    if low > 0 or high < 0:
        verdict = "supported"
    elif low > -UNRELATED and high < UNRELATED:
        verdict = "not_supported"
    return Estimate(float(np.clip(value, low, high)), (low, high), n, 0.0, seed, verdict)


def _effects(
    seen: Interaction, seed: int
) -> tuple[Float64[np.ndarray, "name name"], Float64[np.ndarray, " name"], dict[str, Estimate]]:
    count = len(seen.names)
    means = np.array([each.mean(axis=1) for each in seen.changes]).T
    bounds = np.array([prediction_bound(np.abs(column)) for column in means[count:].T])
    names = {
        (row, column): f"{one} out, on {other}"
        for row, one in enumerate(seen.names)
        for column, other in enumerate(seen.names)
    }
    tests = {
        name: sign_flip(seen.changes[column][row], seed=seed)
        for (row, column), name in names.items()
    }
    p = holm({name: test.p_value for name, test in tests.items()})
    found: dict[str, Estimate] = {}
    for (row, column), name in names.items():
        bound, (low, high) = float(bounds[column]), tests[name].effect.interval
        least, none = max(bound, NEGLIGIBLE), "not_supported"
        verdict: Verdict = none if -least < low and high < least else "undetermined"
        if abs(means[row, column]) > least and p[name] < SIGNIFICANT:
            verdict = "supported"
        found[name] = replace(tests[name].effect, null=bound, verdict=verdict)
    return means[:count], bounds, found


def _headline(seen: Interaction, estimates: Mapping[str, Estimate]) -> str:
    shared = [
        f"{name.removeprefix('cosine of ')} ({each.value:+.2f})"
        for name, each in estimates.items()
        if name.startswith("cosine") and each.verdict == "supported"
    ]
    crossed = [
        f"{name} ({each.value:+.2f})"
        for name, each in estimates.items()
        if " out, on " in name
        and len(set(name.split(" out, on "))) == 2
        and each.verdict == "supported"
    ]
    alike = f"directions that are alike: {', '.join(shared)}" if shared else "no two are alike"
    acts = (
        f"falls that another's removal causes, in nats per token: {', '.join(crossed)}"
        if crossed
        else "no removal is seen to act on another behaviour beyond random ones"
    )
    missing = ""
    if seen.left_out:
        names = ", ".join(seen.left_out)
        missing = f" Left out, for want of pairs or of labelled answers: {names}."
    return f"Of {len(seen.names)} behaviours: {alike}; {acts}.{missing}"


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw both matrices: where directions point, and what their removal does."""
    names = tuple(found.facts["behaviours"])
    rows = (*names, "random, below")
    falls = np.vstack([found.arrays["effect"], found.arrays["bound"]])
    return (
        Picture(
            "Do behaviours share directions?",
            f"Signed cosines at layer {found.facts['layer']}, noise of few prompts taken out.",
            (Panel((Heat(found.arrays["cosine"], names, names, scale=1.0, unit="cosine"),)),),
        ),
        Picture(
            "What does removing one do to another?",
            "Fall of the preference for answers that show a behaviour (columns) with the direction "
            "of each (rows) out of every write, in nats per token. The last row is what the fall "
            "with a random direction out stays below, up or down.",
            (Panel((Heat(falls, rows, names, unit="fall, nats"),)),),
        ),
    )


def measure(
    model: LoadedModel, layer: Layer, *, system: str | None = None, seed: int = 0
) -> Interaction:
    """Read every behaviour that has pairs and labelled answers, at ``layer`` and the last token."""
    names: list[str] = []
    left_out: list[str] = []
    differences: list[Float64[Tensor, "pair d_model"]] = []
    means: list[Float64[Tensor, " d_model"]] = []
    given: list[tuple[Choice, ...]] = []
    for name in BEHAVIOURS:
        contrast = BEHAVIOURS[name].contrast_set()
        splits = split(contrast)
        some = choices(BEHAVIOURS[name], splits.select, CHOICES)
        if not contrast.is_paired or len(some) < CHOICES // 2:
            left_out.append(name)
            continue
        fit = limited(splits.fit, PAIRS)
        sides = [
            _streams(model, encode(model, [p.text for p in side], system=system), layer)
            for side in (fit.harmful, fit.harmless)
        ]
        names.append(name)
        differences.append(sides[0] - sides[1])
        means.append((sides[0] + sides[1]).mean(dim=0) / 2)
        given.append(some)
    directions = [_unit(each.mean(dim=0)) for each in differences]
    mean, generator = torch.stack(means).mean(dim=0), torch.Generator().manual_seed(STREAM + seed)
    removals = [out(each) for each in directions]
    for row in range(RANDOM):
        like = directions[row % len(directions)]
        removals.append(another_out(like, mean, generator))
    head = head_of(model)

    every = [choice for each in given for choice in each]
    ends = np.cumsum([len(each) for each in given])[:-1]

    def preferences() -> list[Float64[np.ndarray, " choice"]]:
        return np.split(preference(model, head, every, system=system), ends)

    before = preferences()
    falls: list[list[np.ndarray]] = [[] for _ in names]
    for change in track(removals, task="remove", total=len(removals), unit="directions"):
        with ablated(model, change):
            for column, after in enumerate(preferences()):
                falls[column].append(before[column] - after)
    changes = tuple(np.array(each) for each in falls)
    units = tuple(each.numpy() for each in differences)
    return Interaction(tuple(names), units, changes, tuple(left_out))


def _streams(model: LoadedModel, encoded: Encoded, layer: Layer) -> Float[Tensor, "prompt d_model"]:
    found = torch.empty(len(encoded), model.anatomy.d_model, dtype=torch.float64)
    with capture(model, [layer]) as stream, without_progress():
        for batch, _ in forward_batches(model, encoded, task="read behaviours"):
            rows = torch.arange(len(batch.rows))
            states = stream[layer].cpu()[rows, batch.lengths.cpu() - 1]
            found[list(batch.rows)] = states.double()
    return found


def _unit(vector: Float64[Tensor, " d_model"]) -> Float64[Tensor, " d_model"]:
    return vector / torch.linalg.vector_norm(vector)


def _run(bench: Bench) -> Findings:
    layer = chosen_place(bench).layer
    seen = measure(bench.model, layer, system=bench.system, seed=bench.seed)
    return behaviour_interactions(seen, layer=layer, seed=bench.seed)


ANALYSES.register("behaviour_interactions")(
    Analysis(
        title="Behaviour interactions",
        question="Do the behaviours that are built in share directions, and what does taking one "
        "out do to the others?",
        method="Signed cosines of mean pair differences by products of different pairs; each "
        "direction out of every write, and the fall of log p per token of answers that show each "
        "behaviour, against answers to the same prompts that do not.",
        null="0 for cosines; for removals 5 random directions with the same cosine to the mean of "
        "the stream: a prediction bound for a sixth",
        source="2310.01405, 2406.11717; bound: Hahn 1969",
        cost="two forward passes of 64 prompts, and 11 of 32 short answers, for each behaviour",
        run=_run,
        pictures=pictures,
    )
)
