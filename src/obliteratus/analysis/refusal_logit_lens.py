"""At which layer does the stream already say that the model will refuse, and is it decided there?

The final norm and the head read the last token's stream at every layer (the logit lens), which
gives log p(refusal) − log p(anything else) layer by layer. The crossing is the first layer from
which on the mean of harmful minus that of harmless prompts is at least half of what it is at the
end. That says where refusal *can be read in the head's own terms*, not where it is decided: it may
be decided before, in directions that the head does not read, or be read and not used. So the same
is asked of the model: the last token's stream of a harmful run is put into a harmless one at every
layer, and the layer is found from which on it brings at least half of the refusal with it. Only
where both layers agree is the crossing called one.
"""

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.lens import (
    Moved,
    Seen,
    last_streams,
    move_streams,
    prefix_of,
    seen_by_the_head,
)
from obliteratus.analysis.lens_reliability import lens_picture, with_lens
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.patching import Patcher
from obliteratus.analysis.resampling import (
    SIGNIFICANT,
    Classes,
    ends,
    weights,
)
from obliteratus.analysis.tuned_lens import neutral_states, tune
from obliteratus.pictures.spec import Line, Panel, Picture, Role
from obliteratus.statistics.estimate import Estimate, Verdict

HALF = 0.5
NEGLIGIBLE = 0.5
"""Log-odds between the classes at the end below which there is no refusal to read."""
NEAR = 0.1
"""Of the depth (and one layer at least): two layers this near each other are the same place."""


def refusal_logit_lens(
    harmful: Seen, harmless: Seen, moved: Moved | None, *, is_paired: bool, permutations: int,
    seed: int,
) -> Findings:  # fmt: skip
    """Return the lens by layer, its crossing, and whether moved streams agree with it.

    Layers are ``embedding`` and the blocks. The null shuffles labels (within pairs, where the
    prompts are paired); p-values are those of the largest contrast of all layers, in standard
    errors (max-T). Without ``moved`` the crossing stays unconfirmed.

    Raises:
        MeasurementError: fewer than two prompts of a class, or logits that are not finite.
    """
    rng = np.random.default_rng(seed)
    classes = Classes(harmful.log_odds, harmless.log_odds, is_paired)
    contrast, tested = classes.contrast, classes.tested(rng, permutations)
    first, second = classes.resampled(rng)
    arrays: dict[str, np.ndarray] = {
        "harmful": harmful.log_odds.mean(axis=0),
        "harmless": harmless.log_odds.mean(axis=0),
        "contrast": contrast,
        "p": tested.p,
        "top_1": (harmful.rank < 1).mean(axis=0),
        "top_5": (harmful.rank < 5).mean(axis=0),
        "top_1_harmless": (harmless.rank < 1).mean(axis=0),
        "null_largest": tested.largest,
    }
    for name, samples in (("harmful", first), ("harmless", second), ("contrast", first - second)):
        arrays[f"{name}_low"], arrays[f"{name}_high"] = ends(samples)
    last = _last(arrays, classes, float(tested.chance[-1]), seed)
    estimates = {"contrast_at_the_end": last}
    seen = last.verdict == "supported" and last.value > 0
    if seen:
        crossing = _layer(contrast, first - second, classes.n, seed)
        estimates["crossing_layer"] = crossing
        if moved is not None:
            estimates |= _compared(crossing, moved, arrays, len(contrast), seed)
    return _findings(arrays, estimates, len(contrast))


def _last(arrays: dict[str, np.ndarray], classes: Classes, null: float, seed: int) -> Estimate:
    value = float(arrays["contrast"][-1])
    low, high = float(arrays["contrast_low"][-1]), float(arrays["contrast_high"][-1])
    verdict: Verdict = "undetermined"
    if arrays["p"][-1] < SIGNIFICANT:
        verdict = "supported"
    elif max(abs(low), abs(high)) < NEGLIGIBLE:
        verdict = "not_supported"
    return Estimate(value, (low, high), classes.n, null=null, seed=seed, verdict=verdict)


def crossing(curves: Float64[np.ndarray, "*sample layer"]) -> Float64[np.ndarray, "*sample"]:
    """Return the first layer (−1 the embedding) from which on a curve has half of its end value.

    A curve that ends at 0 or below has none; the layer is then the last one.
    """
    below = curves < HALF * curves[..., -1:]
    places = np.arange(curves.shape[-1])
    last = np.where(below, places, -1).max(axis=-1)
    return np.asarray(np.minimum(last, len(places) - 2), dtype=np.float64)


def _layer(
    curve: Float64[np.ndarray, " layer"],
    samples: Float64[np.ndarray, "sample layer"],
    n: int,
    seed: int,
) -> Estimate:
    value = float(crossing(curve))
    low, high = ends(crossing(samples))
    interval = (min(float(low), value), max(float(high), value))
    return Estimate(value, interval, n, seed=seed, verdict="undetermined")


def _compared(
    seen: Estimate, moved: Moved, arrays: dict[str, np.ndarray], count: int, seed: int
) -> dict[str, Estimate]:
    """Return the layer from which on the stream carries refusal, and how far the lens is off it."""
    swing = moved.harmful - moved.harmless
    effects = moved.patched - moved.harmless[:, None]
    sampled = weights(len(swing), np.random.default_rng(seed + 1))
    total = sampled @ swing
    if float(swing.mean()) <= 0 or float(np.quantile(total, 0.025)) <= 0:
        return {}
    arrays["recovery"] = effects.mean(axis=0) / swing.mean()
    samples = sampled @ effects / total[:, None]
    arrays["recovery_low"], arrays["recovery_high"] = ends(samples)
    carried = _layer(effects.mean(axis=0), samples, len(swing), seed)
    reach = max(1.0, NEAR * (count - 1))
    # The two intervals are of different resamples: their ends bound the difference generously.
    low, high = seen.interval[0] - carried.interval[1], seen.interval[1] - carried.interval[0]
    verdict: Verdict = "undetermined"
    if -reach <= low and high <= reach:
        verdict = "supported"
    elif low > reach or high < -reach:
        verdict = "not_supported"
    off = Estimate(
        seen.value - carried.value, (low, high), len(swing), null=0.0, seed=seed, verdict=verdict
    )
    return {"patching_layer": carried, "lens_minus_patching": off}


def _findings(
    arrays: dict[str, np.ndarray], estimates: dict[str, Estimate], count: int
) -> Findings:
    layers = ["embedding", *range(count - 1)]

    def first(is_there: np.ndarray) -> int | str | None:
        return layers[int(is_there.argmax())] if is_there.any() else None

    above = np.flatnonzero(arrays["harmful"] <= 0)
    leads = None if arrays["harmful"][-1] <= 0 else layers[int(above[-1]) + 1 if len(above) else 0]
    facts = {
        "layers": layers,
        "first_top_1": first(arrays["top_1"] >= HALF),
        "first_top_5": first(arrays["top_5"] >= HALF),
        "first_different": first(arrays["p"] < SIGNIFICANT),
        "refusal_leads_from": leads,
    }
    return Findings(
        module="refusal_logit_lens",
        headline=_headline(estimates),
        estimates=estimates,
        arrays=arrays,
        facts=facts,
    )


def _name(layer: float) -> str:
    return "the embedding" if layer < 0 else f"layer {layer:.0f}"


def _headline(estimates: dict[str, Estimate]) -> str:
    last = estimates["contrast_at_the_end"]
    low, high = last.interval
    size = f"{last.value:+.1f} log-odds ({low:+.1f} to {high:+.1f})"
    seen = estimates.get("crossing_layer")
    if seen is None:
        return (
            f"Harmful and harmless prompts do not differ in refusal at the end beyond chance: "
            f"{size}."
        )
    low, high = seen.interval
    text = (
        f"The head reads refusal in the stream from {_name(seen.value)} on "
        f"({low:.0f} to {high:.0f}), and the classes end {size} apart; "
    )
    carried, off = estimates.get("patching_layer"), estimates.get("lens_minus_patching")
    if carried is None or off is None:
        return f"{text}whether it is decided there is unconfirmed."
    at = _name(carried.value)
    if off.verdict == "supported":
        return f"{text}patching agrees: from {at} on the last token carries it."
    if off.verdict == "undetermined":
        return f"{text}patching points to {at}, too wide an interval to say that they agree."
    return f"{text}but it is not decided there: the last token carries it from {at} on."


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the lens of both classes, the contrast beside patching, and the top tokens."""
    arrays = found.arrays
    x = tuple(float(layer) for layer in range(-1, len(arrays["contrast"]) - 1))

    def at(name: str) -> tuple[float, ...]:
        return tuple(arrays[name].tolist())

    def line(name: str, label: str, role: Role) -> Line:
        return Line(label, x, at(name), at(f"{name}_low"), at(f"{name}_high"), role)

    lens = (line("harmful", "harmful", "refusal"), line("harmless", "harmless", "compliance"))
    panels = [Panel(lens, "layer (block output)", "refusal log-odds", whole_x=True)]
    caption = (
        "Above: log-odds of a refusal token if the stream ended at this layer; −1 is the embedding."
    )
    if "recovery" in arrays:
        both = (
            line("recovery", "carried by the last token", "edited"),
            Line(
                "contrast of the lens",
                x,
                tuple((arrays["contrast"] / arrays["contrast"][-1]).tolist()),
                role="muted",
                dashed=True,
            ),
        )
        panels.append(Panel(both, "layer (block output)", "share of the end", whole_x=True))
        caption += (
            " Below: the share of refusal that a harmful run's last stream brings into a harmless "
            "run, beside what the lens sees of the contrast."
        )
    tops = (
        Line("first", x, at("top_1"), role="refusal"),
        Line("among five", x, at("top_5"), role="refusal", dashed=True),
        Line("first, harmless", x, at("top_1_harmless"), role="compliance"),
    )
    tested = (lens_picture(found),) if "kl_tuned" in arrays else ()
    return (
        Picture("When the stream says refusal", caption, tuple(panels)),
        Picture(
            "A refusal token in front",
            "Share of harmful prompts whose lens puts a refusal token first, or among the first "
            "five.",
            (Panel(tops, "layer (block output)", "share of prompts", whole_x=True),),
        ),
        *tested,
    )


def _run(bench: Bench) -> Findings:
    model, subset = bench.model, bench.subset
    streams = [last_streams(model, side) for side in (subset.harmful, subset.harmless)]
    lens = tune(bench, neutral_states(bench)) if bench.settings.lens == "tuned" else None
    read = streams if lens is None else [lens.translate(each) for each in streams]
    seen = [seen_by_the_head(model, bench.head, bench.tokens, each) for each in read]
    moved = None
    if model.anatomy.streams is None:  # of several, one cannot stand for what the next block reads
        prefix = prefix_of(subset.harmful, subset.harmless)
        patcher = Patcher(model, bench.head, bench.tokens, (), prefix)
        moved = move_streams(patcher, subset.harmful, subset.harmless, streams[0])
    found = refusal_logit_lens(
        seen[0],
        seen[1],
        moved,
        is_paired=subset.prompts.is_paired,
        permutations=bench.settings.permutations,
        seed=bench.seed,
    )
    return found if lens is None else with_lens(found, lens, seed=bench.seed)


ANALYSES.register("refusal_logit_lens")(
    Analysis(
        title="Refusal logit lens",
        question="From which layer on does the stream say that the model will refuse, and is it "
        "decided there?",
        method="The final norm and the head read the last token's stream at every layer; the "
        "crossing is compared with the layer from which on that stream, moved into a harmless "
        "run, brings refusal with it. "
        "analyze.lens=tuned reads through affine translators learned on neutral text.",
        null="labels shuffled within pairs, largest contrast of all layers",
        source="nostalgebraist 2020 (lesswrong AcKRB8wDpdaN6v6ru), 2303.08112, 2202.05262",
        cost="2 forward passes of 32 prompts a class, and ½ (layers + 1) of the harmless ones; a "
        "tuned lens one more of 512 passages, and a regression by layer",
        run=_run,
        pictures=pictures,
    )
)
