"""Who writes the refusal direction? r·x at the last token as a sum over everything that wrote it.

The stream is a sum of writes, so its part along r splits exactly, r·x = Σ r·w over the embedding,
heads and MLPs (:mod:`obliteratus.analysis.contributions`, which checks that it closes). What all
prompts have in common says nothing about refusal: the split that counts is that of the contrast,
mean harmful − mean harmless, of every component. It says who writes r, not who is needed: a write
may be made up for, or r may not be what the model uses (``causal_tracing``).
"""

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.contributions import Contributions, contributions
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.intervening import selected
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.resampling import SIGNIFICANT, Classes, ends
from obliteratus.errors import MeasurementError
from obliteratus.pictures.spec import Dots, Line, Panel, Picture, Role
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

NEGLIGIBLE = 0.05
"""Of the whole contrast: a component that surely writes less is as good as none."""
SHOWN = 16  # components in the picture


def residual_decomposition(
    harmful: Contributions,
    harmless: Contributions,
    *,
    layer: Layer,
    is_paired: bool,
    permutations: int,
    seed: int,
) -> Findings:
    """Return the contrast of every component along r, with its share of the whole.

    The null shuffles labels (within pairs, where the prompts are paired); p-values are those of the
    largest contrast, in standard errors, of all components (max-T).

    Raises:
        MeasurementError: fewer than two prompts of a class.
    """
    rng = np.random.default_rng(seed)
    both = [np.column_stack([side.values, side.total]) for side in (harmful, harmless)]
    whole = Classes(both[0][:, -1:], both[1][:, -1:], is_paired)
    classes = Classes(both[0], both[1], is_paired)
    parts = Classes(both[0][:, :-1], both[1][:, :-1], is_paired)
    tested, tested_whole = parts.tested(rng, permutations), whole.tested(rng, permutations)
    first, second = classes.resampled(rng)
    samples = first - second
    low, high = ends(samples)
    contrast = classes.contrast
    arrays: dict[str, np.ndarray] = {
        "contrast": contrast[:-1],
        "contrast_low": low[:-1],
        "contrast_high": high[:-1],
        "p": tested.p,
        "harmful": harmful.values.mean(axis=0),
        "harmless": harmless.values.mean(axis=0),
        "null_largest": tested.largest,
    }
    verdict: Verdict = "supported" if tested_whole.p[0] < SIGNIFICANT else "undetermined"
    total = Estimate(
        float(contrast[-1]),
        (float(low[-1]), float(high[-1])),
        classes.n,
        null=float(tested_whole.chance[0]),
        seed=seed,
        verdict=verdict,
    )
    estimates = {"whole_contrast": total}
    if verdict == "supported" and total.value > 0:
        estimates["largest_share"] = _largest(arrays, samples, tested.chance, classes.n, seed)
    return _findings(harmful, harmless, arrays, estimates, layer)


def _largest(
    arrays: dict[str, np.ndarray],
    samples: Float64[np.ndarray, "sample quantity"],
    chance: Float64[np.ndarray, " component"],
    n: int,
    seed: int,
) -> Estimate:
    best = int(arrays["contrast"].argmax())
    whole = float(arrays["contrast"].sum())
    low, high = ends(samples[:, best] / samples[:, -1])
    verdict: Verdict = "undetermined"
    if arrays["p"][best] < SIGNIFICANT:
        verdict = "supported"
    elif float(arrays["contrast_high"].max()) < NEGLIGIBLE * whole:
        verdict = "not_supported"
    value = float(arrays["contrast"][best]) / whole
    interval = (min(float(low), value), max(float(high), value))
    null = float(chance[best]) / whole
    return Estimate(value, interval, n, null=null, seed=seed, verdict=verdict)


def _findings(
    harmful: Contributions,
    harmless: Contributions,
    arrays: dict[str, np.ndarray],
    estimates: dict[str, Estimate],
    layer: Layer,
) -> Findings:
    contrast, whole = arrays["contrast"], estimates["whole_contrast"].value
    order = np.argsort(-contrast)
    writers = [
        harmful.names[i]
        for i in order
        if arrays["p"][i] < SIGNIFICANT and contrast[i] > NEGLIGIBLE * abs(whole)
    ]
    closure = max(harmful.closure, harmless.closure)
    return Findings(
        module="residual_decomposition",
        headline=_headline(estimates, writers, layer, closure),
        estimates=estimates,
        arrays=arrays,
        facts={
            "components": list(harmful.names),
            "layers": list(harmful.layers),
            "layer": layer,
            "writers": writers,
            "closure": closure,
            "undivided": list(harmful.undivided),
        },
    )


def _headline(
    estimates: dict[str, Estimate], writers: list[str], layer: Layer, closure: float
) -> str:
    whole = estimates["whole_contrast"]
    low, high = whole.interval
    best = estimates.get("largest_share")
    if best is None:
        return (
            f"Along the direction the stream behind layer {layer} does not differ between the "
            f"classes beyond chance ({whole.value:.3g}, {low:.3g} to {high:.3g})."
        )
    if best.verdict != "supported" or not writers:
        return (
            f"No single component writes the difference behind layer {layer} beyond chance; the "
            f"largest makes {best.value:.0%} of it (the split closes to {closure:.0e})."
        )
    low, high = best.interval
    others = f", then {', '.join(writers[1:4])}" if len(writers) > 1 else ""
    return (
        f"{writers[0]} writes {best.value:.0%} ({low:.0%} to {high:.0%}) of the difference along "
        f"the direction behind layer {layer}{others}; {len(writers)} components write a part "
        f"beyond chance, and the split closes to {closure:.0e}."
    )


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the largest contrasts with intervals, and how the difference grows over layers."""
    arrays, names = found.arrays, found.facts["components"]
    order = np.argsort(-np.abs(arrays["contrast"]))[:SHOWN].tolist()
    roles: tuple[Role, ...] = tuple(
        "refusal" if arrays["p"][i] < SIGNIFICANT else "muted" for i in order
    )
    values, low, high = (
        tuple(arrays[key][order].tolist()) for key in ("contrast", "contrast_low", "contrast_high")
    )
    dots = Dots(tuple(names[i] for i in order), values, low, high, roles)
    layers = np.array(found.facts["layers"])
    x = tuple(range(-1, int(layers.max()) + 1))
    grown = tuple(float(arrays["contrast"][layers <= layer].sum()) for layer in x)
    line = Line("", tuple(map(float, x)), grown)
    return (
        Picture(
            "Who writes the direction",
            "Mean harmful − mean harmless of what each component wrote along r at the last token, "
            "with 95 % intervals. Grey: not beyond chance, counted over all components.",
            (Panel((dots,), "along r"),),
        ),
        Picture(
            "How the difference grows",
            "The same, summed over all components up to a layer; −1 is the embedding. A multiplier "
            "of a whole block counts in every summand.",
            (Panel((line,), "layer (block output)", "along r", whole_x=True),),
        ),
    )


def _run(bench: Bench) -> Findings:
    subset = bench.subset
    layer, row = selected(bench.directions)
    if layer == "embedding":
        raise MeasurementError("the direction was read before block 0, where nothing wrote it yet.")
    harmful, harmless = (
        contributions(bench.model, side, row, layer) for side in (subset.harmful, subset.harmless)
    )
    return residual_decomposition(
        harmful,
        harmless,
        layer=layer,
        is_paired=subset.prompts.is_paired,
        permutations=bench.settings.permutations,
        seed=bench.seed,
    )


ANALYSES.register("residual_decomposition")(
    Analysis(
        title="Residual decomposition",
        question="Which heads and MLPs write what harmful and harmless prompts differ by along the "
        "refusal direction?",
        method="r·x at the last token is split into what the embedding, every head and every MLP "
        "wrote along r, behind post-norms; that it adds up is checked on every prompt.",
        null="labels shuffled within pairs, largest contrast of all components",
        source="2312.06681 §5 and 2310.15154 (direct attribution); max-T: Westfall and Young 1993",
        cost="1 forward pass of 32 prompts of each class",
        run=_run,
        pictures=pictures,
    )
)
