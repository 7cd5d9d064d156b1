"""Does the direction stay the same from layer to layer, or does it turn?

The stream is carried on, and with it the noise of few prompts: the mean differences of two layers
look alike where neither has a direction. Here the cosine of layers l and m is

  N_lm / √(N_ll N_mm),  N_lm = mean of d_i^l · d_j^m over different prompts (pairs) i ≠ j,

which is what split halves over disjoint prompts give, averaged over all splits: the noise of a
prompt never meets itself, in its own layer or in another. A layer is undetermined where N_ll ≤ 0,
or where labels shuffled within pairs give as large a difference (Holm over layers).

Groups of layers are those of complete linkage: all members have a cosine of at least
``SAME_DIRECTION`` with *each other*, so that a direction which turns a little at every layer does
not become one group. A group is as stable as it comes back when prompts are resampled (the mean
Jaccard overlap with its nearest group, Hennig 2007, doi:10.1016/j.csda.2006.11.025), and its
representative is the layer that is least far from every other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.layer_products import LayerProducts
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.products import cosines, percentiles
from obliteratus.directions.delta_reliability import permutation_p
from obliteratus.directions.samples import samples_at
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.events import track
from obliteratus.pictures.spec import Heat, Line, Panel, Picture
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.statistics.claims import claim_above
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.multiple import holm

SAME_DIRECTION = 0.8
"""Least cosine within a group: 37 degrees, 64 % of the squared length in common."""
FEWEST = 8
RESAMPLES = 100
BATCH = 25
"""Resamples at once: as many mean differences of every layer are in memory."""
SIGNIFICANT = 0.05

Control = Mapping[Layer, str]
"""Layer -> "supported", "not_supported" or "undetermined": does its direction control refusal?"""


@dataclass(frozen=True)
class Group:
    """Layers that share a direction, how often they do so when prompts are resampled, and one."""

    layers: tuple[int, ...]
    stability: float
    representative: int


def cross_layer_alignment(
    activations: Activations,
    *,
    position: int,
    permutations: int,
    seed: int,
    control: Control | None = None,
    no_control: str = "no selection of directions was given",
) -> Findings:
    """Return the corrected cosines of all layers at ``position``, and the groups of alike ones.

    ``control`` says of each layer whether its direction was shown to lower and to induce refusal;
    without it representatives are not confirmed, for the reason ``no_control``.

    Raises:
        MeasurementError: prompts were not kept, or there are fewer than 8 of a class.
    """
    counts = [len(side.prompt_ids) for side in (activations.harmful, activations.harmless)]
    if not activations.harmful.kept or not activations.harmless.kept or min(counts) < FEWEST:
        raise MeasurementError(
            f"layers are compared prompt by prompt, with at least {FEWEST} of each class; there "
            f"are {counts[0]} harmful and {counts[1]} harmless. Probe more prompts, with "
            'keep="prompts".'
        )
    rng = np.random.default_rng(seed)
    stream = LayerProducts(activations, position)
    inner = stream.products(stream.once())[0]
    layers = activations.layers
    batches = range(0, RESAMPLES, BATCH)
    drawn = np.concatenate(
        [
            stream.products(stream.resampled(rng, BATCH))
            for _ in track(batches, task="compare layers", total=len(batches), unit="batches")
        ]
    )
    is_there = _determined(activations, position, np.diagonal(inner), permutations, seed)
    shown = np.where(np.outer(is_there, is_there), 1.0, np.nan)
    cosine, replicates = cosines(inner) * shown, cosines(drawn) * shown
    low, high = percentiles(replicates)
    labels = _labels(replicates, is_there)
    groups = grouped(cosine, labels)
    n = counts[0] if activations.is_paired else sum(counts)
    return Findings(
        module="cross_layer_alignment",
        headline=_headline(layers, is_there, groups, control),
        estimates=_estimates(cosine, replicates, groups, labels, n=n, seed=seed),
        arrays={
            "cosine": np.clip(cosine, -1, 1),
            "low": np.clip(np.fmin(low, cosine), -1, 1),
            "high": np.clip(np.fmax(high, cosine), -1, 1),
            "plain": cosines(stream.plain()),
            "squared_length": np.diagonal(inner).copy(),
        },
        facts={
            "layers": list(layers),
            "position": position,
            "determined": [layer for layer, there in zip(layers, is_there, strict=True) if there],
            "groups": [_facts(each, layers, control) for each in groups],
            "causal": "bypass and induce of DISTILL" if control is not None else no_control,
        },
    )


def _determined(
    activations: Activations,
    position: int,
    squared: Float64[np.ndarray, " layer"],
    permutations: int,
    seed: int,
) -> Bool[np.ndarray, " layer"]:
    """Say which layers have a difference: N_ll > 0, and shuffled labels rarely have as much."""
    layers = activations.layers
    shuffles = max(permutations, int(2 * len(layers) / SIGNIFICANT))  # enough for Holm
    p_values = {
        str(layer): permutation_p(
            samples_at(activations, layer, position), shuffles=shuffles, seed=seed
        )
        for layer in track(layers, task="shuffle labels", total=len(layers), unit="layers")
    }
    adjusted = holm(p_values)
    return np.array([adjusted[str(layer)] < SIGNIFICANT for layer in layers]) & (squared > 0)


def grouped(
    cosine: Float64[np.ndarray, "layer layer"], labels: Int[np.ndarray, "resample known"]
) -> tuple[Group, ...]:
    """Return the groups of the layers that are determined, largest first.

    ``labels`` are the groups that each resample puts these layers into.
    """
    known = np.flatnonzero(np.isfinite(np.diagonal(cosine)))
    if not len(known):
        return ()
    found = _complete_linkage(cosine[np.ix_(known, known)])
    groups: list[Group] = []
    for label in np.unique(found):
        mine = found == label
        within = cosine[np.ix_(known[mine], known[mine])]
        representative = int(known[mine][int(within.min(axis=1).argmax())])
        members = tuple(int(row) for row in known[mine])
        groups.append(Group(members, _stability(mine, labels), representative))
    return tuple(sorted(groups, key=lambda each: (-len(each.layers), each.layers)))


def _labels(
    replicates: Float64[np.ndarray, "resample layer layer"], is_there: Bool[np.ndarray, " layer"]
) -> Int[np.ndarray, "resample known"]:
    inside = np.nan_to_num(replicates[:, is_there][:, :, is_there])
    found = np.zeros(inside.shape[:2], dtype=np.int64)
    if is_there.any():
        found[:] = [_complete_linkage(each) for each in inside]
    return found


def _complete_linkage(cosine: Float64[np.ndarray, "layer layer"]) -> Int[np.ndarray, " layer"]:
    if len(cosine) == 1:
        return np.ones(1, dtype=np.int64)
    distance = 1 - np.clip(cosine, -1, 1)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="complete")
    return fcluster(tree, 1 - SAME_DIRECTION, criterion="distance").astype(np.int64)


def _stability(
    mine: Bool[np.ndarray, " known"], labels: Int[np.ndarray, "resample known"]
) -> float:
    """Return the mean over resamples of the largest Jaccard overlap of ``mine`` with a group."""
    others = labels[None] == np.arange(labels.max() + 1)[:, None, None]
    overlaps = (others & mine).sum(axis=-1) / (others | mine).sum(axis=-1)
    return float(overlaps.max(axis=0).mean())


def _estimates(
    cosine: Float64[np.ndarray, "layer layer"],
    replicates: Float64[np.ndarray, "resample layer layer"],
    groups: tuple[Group, ...],
    labels: Int[np.ndarray, "resample known"],
    *,
    n: int,
    seed: int,
) -> dict[str, Estimate]:
    known = np.flatnonzero(np.isfinite(np.diagonal(cosine)))
    if len(known) < 2:
        return {"mean_cosine": Estimate(0.0, (-1.0, 1.0), n=n, null=0.0, seed=seed)}
    outside = np.zeros(cosine.shape, dtype=bool)
    outside[np.ix_(known, known)] = True
    np.fill_diagonal(outside, val=False)
    low, high = percentiles(replicates[:, outside].mean(axis=1)[:, None])
    ends = np.clip([cosine[outside].mean(), low[0], high[0]], -1, 1).tolist()
    mean = Estimate(
        ends[0], (min(ends[1], ends[0]), max(ends[2], ends[0])), n=n, null=0.0, seed=seed
    )
    counts = np.array([len(np.unique(each)) for each in labels])
    few, many = np.quantile(counts, [SIGNIFICANT / 2, 1 - SIGNIFICANT / 2])
    found = Estimate(
        float(len(groups)),
        (float(min(few, len(groups))), float(max(many, len(groups)))),
        n=n,
        null=float(len(known)),
        seed=seed,
    )
    return {"mean_cosine": claim_above(mean, 0.0), "groups": found}


def _facts(group: Group, layers: Sequence[Layer], control: Control | None) -> dict[str, Any]:
    representative = layers[group.representative]
    return {
        "layers": [layers[row] for row in group.layers],
        "stability": group.stability,
        "representative": representative,
        "control": None if control is None else control.get(representative, "undetermined"),
    }


def _headline(
    layers: Sequence[Layer],
    is_there: Bool[np.ndarray, " layer"],
    groups: tuple[Group, ...],
    control: Control | None,
) -> str:
    count = int(is_there.sum())
    if count < 2:
        return (
            f"Undetermined: {count} of {len(layers)} layers have a direction that stands out of "
            "the noise of the prompts."
        )
    first = groups[0]
    names = _span([layers[row] for row in first.layers])
    kind = "one group" if len(groups) == 1 else f"{len(groups)} groups"
    confirmed = {
        None: "not tested causally",
        "supported": "shown to control refusal",
        "not_supported": "which does not control refusal",
        "undetermined": "of undetermined control over refusal",
    }
    chosen = layers[first.representative]
    verdict = None if control is None else control.get(chosen, "undetermined")
    return (
        f"The directions of {count} layers form {kind} with a cosine of at least "
        f"{SAME_DIRECTION:g} inside; the largest is {names} (stability {first.stability:.2f}), "
        f"represented by {chosen}, {confirmed[verdict]}."
    )


def _span(layers: Sequence[Layer]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]} alone"
    return f"{len(layers)} layers from {layers[0]} to {layers[-1]}"


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the cosines of all layers, and how far each direction is from that of the largest."""
    layers = found.facts["layers"]
    names = tuple(map(str, layers))
    shown = [
        Picture(
            "Which layers share a direction",
            "Signed cosines between the directions of all layers, noise of few prompts taken out "
            "(by products of disjoint prompts). Empty: undetermined.",
            (Panel((Heat(found.arrays["cosine"], names, names, scale=1.0, unit="cosine"),)),),
        )
    ]
    if found.facts["groups"]:
        row = layers.index(found.facts["groups"][0]["representative"])
        x = tuple(-1.0 if layer == "embedding" else float(layer) for layer in layers)

        def at(name: str) -> tuple[float, ...]:
            return tuple(found.arrays[name][row].tolist())

        lines = (
            Line("without noise", x, at("cosine"), at("low"), at("high")),
            Line("as estimated", x, at("plain"), role="original"),
            Line("one group", x, (SAME_DIRECTION,) * len(x), role="muted", dashed=True),
        )
        panel = Panel(lines, "layer (block output)", "cosine", whole_x=True)
        caption = (
            f"Cosine with the direction of layer {layers[row]}, which represents the largest "
            "group; the band is a 95 % interval. −1 is the embedding."
        )
        shown.append(Picture("How the direction turns", caption, (panel,)))
    return tuple(shown)


def control_of_layers(provenance: Mapping[str, Any]) -> Control | None:
    """Return what DISTILL found that each block's direction controls, None where it did not look.

    Supported where the direction lowers refusal when removed *and* induces it when added.
    """
    ranks = provenance.get("layers") or ()
    found: dict[Layer, str] = {}
    for rank in ranks:
        verdicts = {
            "undetermined" if rank[name] is None else rank[name]["verdict"]
            for name in ("bypass", "induce")
        }
        if "not_supported" in verdicts:
            found[rank["layer"]] = "not_supported"
        else:
            found[rank["layer"]] = "supported" if verdicts == {"supported"} else "undetermined"
    return found or None


def _run(bench: Bench) -> Findings:
    activations = bench.activations
    control: Control | None = None
    why, position = "DISTILL found no refusal log-odds to measure control by", None
    try:
        control = control_of_layers(bench.directions.provenance)
        position = bench.directions.position
    except DirectionError as error:
        why = f"DISTILL selected no direction ({error})"
    return cross_layer_alignment(
        activations,
        position=max(activations.positions) if position is None else position,
        permutations=bench.settings.permutations,
        seed=bench.seed,
        control=control,
        no_control=why,
    )


ANALYSES.register("cross_layer_alignment")(
    Analysis(
        title="Cross-layer alignment",
        question="Is the direction the same at every layer, and which layers represent the others?",
        method="Signed cosines of the layers' mean differences from products of disjoint prompts; "
        "groups by complete linkage, with their stability under a bootstrap of prompts; control of "
        "the representatives as DISTILL measured it.",
        null="cosine 0 for unrelated directions; labels shuffled within pairs, Holm over layers",
        source="Hennig 2007 (doi:10.1016/j.csda.2006.11.025); unbiased products: Walther et al. "
        "2016 (doi:10.1016/j.neuroimage.2015.12.012)",
        cost="none beyond PROBE (and DISTILL, which measures control)",
        run=_run,
        pictures=pictures,
    )
)
