"""Which heads and MLPs carry refusal? Patches between the runs of minimal pairs, both ways.

For pairs of a harmful and a harmless prompt with equally many tokens, what one place (a head, an
MLP) does at all tokens is taken from one run into the other, and the rest of the model runs on:

  denoising  d = score(harmless run, place from the harmful run) − score(harmless run),
  noising    n = score(harmful run) − score(harmful run, place from the harmless run),

the score being the refusal log-odds. Recovery is Σ d / Σ swing, over pairs, with swing the score of
the harmful run minus that of the harmless one: a ratio of sums, since some pairs hardly differ. The
two are different questions. Denoising finds what is enough to bring refusal about, noising what it
cannot do without; where later parts make up for a loss (a backup), the second is the smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.parts import parts, places
from obliteratus.analysis.patching import Patcher
from obliteratus.analysis.resampling import FLOOR, SIGNIFICANT, TINY, chance, ends, max_t, weights
from obliteratus.analysis.tracing import Traced, aligned_pairs, trace
from obliteratus.pictures.spec import Dots, Heat, Panel, Picture, Role
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.permutation import sign_flip

NEGLIGIBLE_SWING = 0.5
"""Mean log-odds between both sides of a pair: below it, a model refuses neither more than the
other."""
NEGLIGIBLE_SHARE = 0.05
"""Of the swing: a place that surely carries less than this is as good as none."""
AGREES = 0.7
"""Correlation over places from which on attribution may stand for patching."""
SHOWN = 12  # places in a picture that names them


def causal_tracing(traced: Traced, *, permutations: int, seed: int) -> Findings:
    """Return what every place carries in both directions, by patching and to first order.

    The null exchanges the roles of a pair: a harmless run patched from the harmful one becomes a
    harmful run patched from the harmless one, so d turns into −n and n into −d, and no further run
    is needed. p-values are those of the largest mean, in standard errors, over all places and both
    directions (max-T). Where harmful and harmless prompts do not differ in refusal there is no
    recovery, and effects are given in log-odds.
    """
    rng = np.random.default_rng(seed)
    swing = traced.harmful - traced.harmless
    denoising = traced.denoised - traced.harmless[:, None]
    noising = traced.harmful[:, None] - traced.noised
    n = len(swing)
    test = sign_flip(swing, seed=seed)
    is_swung = test.p_value < SIGNIFICANT and float(swing.mean()) > 0
    turned = rng.random((permutations, n)) < 0.5
    effects = _Effects(denoising, noising)
    means, errors = (each[0] for each in effects.errors(np.zeros((1, n), dtype=bool)))
    shuffled = effects.errors(turned)
    null = (np.abs(shuffled[0]) / shuffled[1]).max(axis=(1, 2))
    p = max_t(np.abs(means) / errors, null)
    both = np.stack([denoising, noising])
    sampled = weights(n, rng)
    scale = sampled @ swing if is_swung else np.ones(len(sampled))
    whole = float(swing.mean()) if is_swung else 1.0
    arrays: dict[str, np.ndarray] = {}
    for row, name in enumerate(("denoising", "noising")):
        arrays[name] = both[row].mean(axis=0) / whole
        low, high = ends(sampled @ both[row] / scale[:, None])
        arrays |= {f"{name}_low": low, f"{name}_high": high, f"{name}_p": p[row]}
        arrays[f"{name}_chance"] = chance(null) * errors[row] / whole
    arrays["attribution_denoising"] = traced.rise.mean(axis=0) / whole
    arrays["attribution_noising"] = traced.fall.mean(axis=0) / whole
    arrays["null_largest"] = null
    estimates = {
        "swing": _swing(test.effect, is_swung),
        "denoising": _best(arrays, "denoising", n, seed, is_swung),
        "noising": _best(arrays, "noising", n, seed, is_swung),
        "attribution_agreement": _agreement(traced, both, sampled, seed),
    }
    return _findings(traced, arrays, estimates, is_swung)


@dataclass(frozen=True)
class _Effects:
    """What patches of a place change, both ways, pair by pair; studentised by their own spread."""

    denoising: Float64[np.ndarray, "pair place"]
    noising: Float64[np.ndarray, "pair place"]

    def errors(
        self, turned: Bool[np.ndarray, "permutation pair"]
    ) -> tuple[
        Float64[np.ndarray, "permutation direction place"],
        Float64[np.ndarray, "permutation direction place"],
    ]:
        """Return means and standard errors with the roles of the ``turned`` pairs exchanged."""
        n = turned.shape[1]
        kept, other = (1.0 - turned) / n, turned / n
        both = (self.denoising, self.noising)
        means = np.stack([kept @ a - other @ b for a, b in (both, both[::-1])], axis=1)
        squares = np.stack([kept @ a**2 + other @ b**2 for a, b in (both, both[::-1])], axis=1)
        variance = np.maximum(squares - means**2, 0.0) / (n - 1)
        largest = np.sqrt(max(float((each**2).mean(axis=0).max()) for each in both) / n)
        return means, np.sqrt(np.maximum(variance, (FLOOR * largest) ** 2 + TINY))


def _swing(effect: Estimate, is_swung: bool) -> Estimate:
    is_none = effect.interval[1] < NEGLIGIBLE_SWING
    verdict: Verdict = "not_supported" if is_none else "undetermined"
    return replace(effect, null=0.0, verdict="supported" if is_swung else verdict)


def _best(arrays: dict[str, np.ndarray], name: str, n: int, seed: int, is_swung: bool) -> Estimate:
    best = int(arrays[name].argmax())
    verdict: Verdict = "undetermined"
    if is_swung and arrays[f"{name}_p"][best] < SIGNIFICANT:
        verdict = "supported"
    elif is_swung and float(arrays[f"{name}_high"].max()) < NEGLIGIBLE_SHARE:
        verdict = "not_supported"
    return Estimate(
        float(arrays[name][best]),
        (float(arrays[f"{name}_low"][best]), float(arrays[f"{name}_high"][best])),
        n=n,
        null=float(arrays[f"{name}_chance"][best]),
        seed=seed,
        verdict=verdict,
    )


def _agreement(
    traced: Traced,
    both: Float64[np.ndarray, "direction pair place"],
    sampled: Float64[np.ndarray, "sample pair"],
    seed: int,
) -> Estimate:
    """Correlate, over places and directions, the first order summed over roles with patching."""
    exact = np.concatenate([both[0], both[1]], axis=1)
    fast = np.concatenate([traced.rise.sum(axis=2), traced.fall.sum(axis=2)], axis=1)
    value = float(_correlation(exact.mean(axis=0)[None], fast.mean(axis=0)[None])[0])
    low, high = ends(_correlation(sampled @ exact, sampled @ fast))
    interval = (min(float(low), value), max(float(high), value))
    verdict: Verdict = "undetermined"
    if interval[0] > AGREES:
        verdict = "supported"
    elif interval[1] < AGREES:
        verdict = "not_supported"
    return Estimate(value, interval, n=len(sampled[0]), null=0.0, seed=seed, verdict=verdict)


def _correlation(
    first: Float64[np.ndarray, "sample place"], second: Float64[np.ndarray, "sample place"]
) -> Float64[np.ndarray, " sample"]:
    one, two = (each - each.mean(axis=1, keepdims=True) for each in (first, second))
    size = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    return (one * two).sum(axis=1) / np.where(size > 0, size, 1.0)


def _findings(
    traced: Traced,
    arrays: dict[str, np.ndarray],
    estimates: dict[str, Estimate],
    is_swung: bool,
) -> Findings:
    names = traced.names
    found = {
        name: [names[i] for i in _ranked(arrays, name) if is_swung]
        for name in ("denoising", "noising")
    }
    n = len(traced.harmful)
    return Findings(
        module="causal_tracing",
        headline=_headline(traced, estimates, arrays, found, is_swung),
        estimates=estimates,
        arrays=arrays,
        facts={
            "places": list(names),
            "layers": list(traced.layers),
            "heads": list(traced.heads),
            "roles": list(traced.roles),
            "pairs": {"used": n, "offered": traced.offered},
            "enough": found["denoising"],
            "needed": found["noising"],
            "unit": "share of the swing" if is_swung else "log-odds",
        },
    )


def _ranked(arrays: dict[str, np.ndarray], name: str) -> list[int]:
    """Return the places that carry a part of refusal beyond chance, the largest first."""
    order = np.argsort(-arrays[name]).tolist()
    return [
        i
        for i in order
        if arrays[f"{name}_p"][i] < SIGNIFICANT and arrays[name][i] > NEGLIGIBLE_SHARE
    ]


def _headline(
    traced: Traced,
    estimates: dict[str, Estimate],
    arrays: dict[str, np.ndarray],
    found: dict[str, list[str]],
    is_swung: bool,
) -> str:
    n, swing = len(traced.harmful), estimates["swing"]
    where = f"{n} pairs of equal length, of {traced.offered}"
    if not is_swung:
        low, high = swing.interval
        return (
            f"Harmful prompts are not refused more than harmless ones ({swing.value:+.2f} "
            f"log-odds, {low:+.2f} to {high:+.2f}; {where}): there is nothing to trace."
        )
    enough = estimates["denoising"]
    if enough.verdict != "supported":
        return (
            f"No single head or MLP carries refusal beyond chance ({where}): the most restores "
            f"{enough.value:.0%} of the swing, and chance reaches {enough.null or 0:.0%}."
        )
    low, high = enough.interval
    best = traced.names[int(arrays["denoising"].argmax())]
    lost = arrays["noising"][int(arrays["denoising"].argmax())]
    return (
        f"{best} alone brings back {enough.value:.0%} ({low:.0%} to {high:.0%}) of the refusal "
        f"log-odds when put into harmless runs, and {lost:.0%} goes when it is taken from harmful "
        f"ones; {len(found['denoising'])} of {len(traced.names)} places are enough for a part, "
        f"{len(found['noising'])} are needed ({where})."
    )


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw both directions by layer and place, the largest with intervals, and by position."""
    unit = found.facts["unit"]
    heats = tuple(_heat(found, name) for name in ("denoising", "noising"))
    order = np.argsort(-found.arrays["denoising"])[:SHOWN].tolist()
    shown = [found.facts["places"][i] for i in order]
    scale = float(np.nanmax(np.abs(found.arrays["attribution_denoising"][order]))) or 1.0
    by_role = Heat(
        found.arrays["attribution_denoising"][order],
        tuple(shown),
        tuple(found.facts["roles"]),
        scale=scale,
        unit=unit,
    )
    return (
        Picture(
            "What is enough, and what is needed",
            f"Above: {unit} that a place brings into harmless runs (denoising). Below: what goes "
            "when it is taken from harmful runs (noising). All tokens at once.",
            (Panel((heats[0],), "", "layer"), Panel((heats[1],), "place", "layer")),
            shares_x=False,
        ),
        Picture(
            "The places that carry most",
            f"Above denoising, below noising, with 95 % intervals by pair, as {unit}. Grey: not "
            "beyond chance, counted over all places.",
            tuple(Panel((_dots(found, name, order),), unit) for name in ("denoising", "noising")),
        ),
        Picture(
            "The same by position, to first order",
            "Attribution patching into harmless runs. It stands for patching as far as both agree "
            f"(correlation {found.estimates['attribution_agreement'].value:.2f}); it "
            "understates places behind saturated attention.",
            (Panel((by_role,), "token", "place"),),
        ),
    )


def _heat(found: Findings, name: str) -> Heat:
    layers: Sequence[int] = found.facts["layers"]
    columns = [
        place.removeprefix(f"L{layer}").strip()
        for place, layer in zip(found.facts["places"], layers, strict=True)
    ]
    named = tuple(dict.fromkeys(columns))
    values = np.full((max(layers) + 1, len(named)), np.nan)
    values[layers, [named.index(column) for column in columns]] = found.arrays[name]
    rows = tuple(map(str, range(len(values))))
    return Heat(values, rows, named, unit=found.facts["unit"])


def _dots(found: Findings, name: str, order: Sequence[int]) -> Dots:
    arrays = found.arrays
    roles: tuple[Role, ...] = tuple(
        "refusal" if arrays[f"{name}_p"][i] < SIGNIFICANT else "muted" for i in order
    )
    values, low, high = (
        tuple(arrays[key][order].tolist()) for key in (name, f"{name}_low", f"{name}_high")
    )
    return Dots(tuple(found.facts["places"][i] for i in order), values, low, high, roles)


def _run(bench: Bench) -> Findings:
    model = bench.model
    pairs = aligned_pairs(
        model, bench.splits.select, count=bench.settings.prompts, system=bench.system
    )
    patcher = Patcher(model, bench.head, bench.tokens, parts(model), pairs.prefix)
    traced = trace(patcher, places(model), pairs)
    return causal_tracing(traced, permutations=bench.settings.permutations, seed=bench.seed)


ANALYSES.register("causal_tracing")(
    Analysis(
        title="Causal tracing",
        question="Which heads and MLPs are enough to bring refusal about, and which are needed?",
        method="What a place does at all tokens is taken from one run of a minimal pair into the "
        "other, both ways, and only later layers are run again; recovery is a ratio of sums. By "
        "position the same is estimated from gradients, beside how well that agrees.",
        null="roles of the two prompts of a pair exchanged, largest effect of all places",
        source="2202.05262, 2404.15255 (denoising and noising), 2403.00745 (attribution patching)",
        cost="2 × (heads + MLPs) × ½ forward passes of 32 pairs, and 4 with gradients",
        run=_run,
        pictures=pictures,
    )
)
