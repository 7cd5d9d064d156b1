"""Where can harm be read from the stream? Held-out separation at every layer and position.

For each place the direction between the class means is found on four fifths of the prompts (pairs
stay together) and the rest is scored along it, after every coordinate was divided by its standard
deviation over all prompts, labels unseen: so neither the size of the stream nor one enormous
coordinate matters. All five parts together give

  AUC, the chance that a harmful prompt scores above a harmless one,
  d' = (mean harmful − mean harmless) / pooled standard deviation, and
  TPR at 1 % FPR, the share of harmful prompts above all but one in a hundred harmless ones.

That harm can be read somewhere does not mean that the model uses it: see ``causal_tracing``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.pictures.spec import Heat, Line, Panel, Picture
from obliteratus.probe.activations import Activations
from obliteratus.statistics.estimate import Estimate, Verdict

FOLDS = 5
FEWEST = 2 * FOLDS
"""Prompts of each class: every part then has two of each."""
SIGNIFICANT = 0.05
NEGLIGIBLE = 0.6
"""An AUC that surely stays below this is as good as none: d' below 0.36."""
FALSE_POSITIVES = 0.01
Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Scores:
    """Held-out scores of one place: those of the true labels, and one column per shuffling."""

    true: Float64[np.ndarray, " prompt"]
    shuffled: Float64[np.ndarray, "prompt permutation"]


def activation_probing(activations: Activations, *, permutations: int, seed: int) -> Findings:
    """Return the separation of the classes at every captured layer and position.

    The null shuffles labels (within pairs, where the prompts are paired) and repeats everything,
    ``permutations`` times; p-values are those of the largest AUC of all places (max-T), so that
    looking at many places is paid for.

    Raises:
        MeasurementError: prompts were not kept, or there are fewer than 10 of a class.
    """
    sides = (activations.harmful, activations.harmless)
    counts = [len(side.prompt_ids) for side in sides]
    if not all(side.kept for side in sides) or min(counts) < FEWEST:
        raise MeasurementError(
            f"probing needs every activation of at least {FEWEST} prompts of each class; there are "
            f"{counts[0]} harmful and {counts[1]} harmless. Probe more prompts, with "
            'keep="prompts".'
        )
    deal = _Deal(counts, activations.is_paired, permutations, seed)
    shape = (len(activations.layers), len(activations.positions))
    arrays = {name: np.empty(shape) for name in ("auc", "low", "high", "d_prime", "tpr")}
    null = np.zeros(permutations)
    places = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    for row, column in track(places, task="probing", total=len(places), unit="places"):
        layer = activations.layers[row]
        stream = np.concatenate([side.kept[layer][:, column].double().numpy() for side in sides])
        scores = deal.scores(stream)
        harmful, harmless = np.split(scores.true, [counts[0]])
        value, (low, high) = auc_interval(harmful, harmless, is_paired=activations.is_paired)
        arrays["auc"][row, column] = value
        arrays["low"][row, column], arrays["high"][row, column] = low, high
        arrays["d_prime"][row, column] = _d_prime(harmful, harmless)
        arrays["tpr"][row, column] = _tpr(harmful, harmless)
        null = np.maximum(null, deal.shuffled_auc(scores.shuffled))
    arrays["p"] = _max_t(arrays["auc"], null)
    return _findings(activations, arrays, null, sum(counts), seed)


def auc_interval(
    harmful: Float64[np.ndarray, " harmful"],
    harmless: Float64[np.ndarray, " harmless"],
    *,
    is_paired: bool,
) -> tuple[float, tuple[float, float]]:
    """Return the AUC of held-out scores and its 95 % interval (DeLong 1988, on the logit scale).

    Where ``is_paired``, scores i of both classes are one unit, so what a pair has in common is
    allowed for.
    """
    above = (harmful[:, None] > harmless).astype(float) + 0.5 * (harmful[:, None] == harmless)
    value = float(above.mean())
    first, second = above.mean(axis=1), above.mean(axis=0)
    if is_paired:
        variance = float(np.var(first + second, ddof=1)) / len(first)
    else:
        variance = float(np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second))
    n = min(len(harmful), len(harmless))
    inside = min(max(value, 0.5 / n), 1 - 0.5 / n)  # a perfect score has no logit
    variance = max(variance, inside * (1 - inside) / (n * n))
    middle, spread = np.log(inside / (1 - inside)), np.sqrt(variance) / (inside * (1 - inside))
    low, high = (1 / (1 + np.exp(-(middle + sign * Z * spread))) for sign in (-1, 1))
    return value, (float(min(low, value)), float(max(high, value)))


class _Deal:
    """One deal of the prompts into parts, and the shuffled labels: the same at every place."""

    def __init__(self, counts: Sequence[int], is_paired: bool, permutations: int, seed: int):
        rng = np.random.default_rng(seed)
        label = np.repeat([1.0, -1.0], counts)
        if is_paired:
            part = np.tile(rng.permutation(np.arange(counts[0]) % FOLDS), 2)
            turned = rng.choice([1.0, -1.0], size=(counts[0], permutations))
            shuffled = label[:, None] * np.tile(turned, (2, 1))
        else:
            part = np.concatenate([rng.permutation(np.arange(count) % FOLDS) for count in counts])
            shuffled = np.stack([rng.permutation(label) for _ in range(permutations)], axis=1)
        self._part: Int64[np.ndarray, " prompt"] = part
        self._labels = np.concatenate([label[:, None], shuffled], axis=1)

    def scores(self, stream: Float64[np.ndarray, "prompt d_model"]) -> Scores:
        """Return held-out scores, in units of the length of each part's own direction.

        With G = X Xᵀ and w the labels over their counts, δ = Xᵀ w, and a prompt's score is
        (G w − wᵀ G m) / √(wᵀ G w), m being the halved weights of both class means.
        """
        centred = stream - stream.mean(axis=0)
        deviation = centred.std(axis=0)
        unit = centred / np.where(deviation > 0, deviation, 1.0)
        gram = unit @ unit.T
        found = np.empty((len(stream), self._labels.shape[1]))
        for part in range(FOLDS):
            held = self._part == part
            positive = (self._labels > 0) & ~held[:, None]
            negative = (self._labels < 0) & ~held[:, None]
            means = [side / np.maximum(side.sum(axis=0), 1) for side in (positive, negative)]
            along = gram @ (means[0] - means[1])
            length = np.sqrt(np.maximum(((means[0] - means[1]) * along).sum(axis=0), 1e-30))
            middle = ((means[0] + means[1]) * along).sum(axis=0) / 2
            found[held] = ((along - middle) / length)[held]
        return Scores(found[:, 0], found[:, 1:])

    def shuffled_auc(
        self, scores: Float64[np.ndarray, "prompt permutation"]
    ) -> Float64[np.ndarray, " permutation"]:
        """Return the AUC of each shuffling, by ranks."""
        ranks = stats.rankdata(scores, axis=0)
        is_positive = self._labels[:, 1:] > 0
        count = is_positive.sum(axis=0)
        above = (ranks * is_positive).sum(axis=0) - count * (count + 1) / 2
        return above / (count * (len(ranks) - count))


def _d_prime(harmful: Float64[np.ndarray, " a"], harmless: Float64[np.ndarray, " b"]) -> float:
    pooled = np.sqrt((harmful.var(ddof=1) + harmless.var(ddof=1)) / 2)
    return float((harmful.mean() - harmless.mean()) / pooled) if pooled > 0 else 0.0


def _tpr(harmful: Float64[np.ndarray, " a"], harmless: Float64[np.ndarray, " b"]) -> float:
    return float((harmful > np.quantile(harmless, 1 - FALSE_POSITIVES, method="higher")).mean())


def _max_t(
    observed: Float64[np.ndarray, "layer position"], null: Float64[np.ndarray, " permutation"]
) -> Float64[np.ndarray, "layer position"]:
    reached = (null >= observed[..., None] - 1e-12).sum(axis=-1)
    return (1 + reached) / (1 + len(null))


def _verdict(p: float, high: float) -> Verdict:
    if p < SIGNIFICANT:
        return "supported"
    return "not_supported" if high < NEGLIGIBLE else "undetermined"


def _findings(
    activations: Activations,
    arrays: dict[str, Float64[np.ndarray, "layer position"]],
    null: Float64[np.ndarray, " permutation"],
    n: int,
    seed: int,
) -> Findings:
    row, column = np.unravel_index(int(arrays["auc"].argmax()), arrays["auc"].shape)
    chance = float(np.quantile(null, 1 - SIGNIFICANT))
    layer, position = activations.layers[row], activations.positions[column]
    high = float(arrays["high"].max())
    best = Estimate(
        float(arrays["auc"][row, column]),
        (float(arrays["low"][row, column]), float(arrays["high"][row, column])),
        n=n,
        null=chance,
        seed=seed,
        verdict=_verdict(float(arrays["p"][row, column]), high),
    )
    names = [str(each) for each in activations.layers]
    readable = (arrays["p"] < SIGNIFICANT).any(axis=1)
    first = names[int(readable.argmax())] if readable.any() else None
    where = f"layer {layer}, position {position}"
    says = {
        "supported": f"Harm can be read from the stream, first at layer {first}, best at {where}",
        "not_supported": "Harm can be read from the stream nowhere",
        "undetermined": "Too few prompts to say whether harm can be read from the stream",
    }[best.verdict]
    low, top = best.interval
    return Findings(
        module="activation_probing",
        headline=f"{says}: held-out AUC {best.value:.2f} ({low:.2f} to {top:.2f}); shuffled labels "
        f"stay below {chance:.2f} anywhere.",
        estimates={"best_auc": best},
        arrays={**arrays, "null_largest": null},
        facts={
            "layers": list(activations.layers),
            "positions": list(activations.positions),
            "best": {"layer": layer, "position": position},
            "first_layer": first,
            "d_prime": float(arrays["d_prime"][row, column]),
            "tpr_at_1_percent": float(arrays["tpr"][row, column]),
        },
    )


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the AUC over layers at the best position, and over all places where there are more."""
    layers, positions = found.facts["layers"], found.facts["positions"]
    column = positions.index(found.facts["best"]["position"])
    x = tuple(-1.0 if layer == "embedding" else float(layer) for layer in layers)
    chance = found.estimates["best_auc"].null or 0.5

    def at(name: str) -> tuple[float, ...]:
        return tuple(found.arrays[name][:, column].tolist())

    lines = (
        Line("held-out AUC", x, at("auc"), at("low"), at("high")),
        Line("largest by chance", x, (chance,) * len(x), role="muted", dashed=True),
    )
    shown = [
        Picture(
            "Where harm can be read",
            f"Held-out AUC of harmful against harmless prompts at position {positions[column]}; "
            "the band is a 95 % interval. Dashed: what the best of all places reaches with "
            "shuffled labels in 19 of 20 cases. −1 is the embedding.",
            (Panel(lines, "layer (block output)", "AUC", zero=False, whole_x=True),),
        )
    ]
    if len(positions) > 1:
        heat = Heat(
            found.arrays["auc"] - 0.5,
            tuple(map(str, layers)),
            tuple(map(str, positions)),
            scale=0.5,
            unit="AUC − 0.5",
        )
        caption = "The same at every position that was read, counted from the end of the prompt."
        panel = Panel((heat,), "position", "layer")
        shown.append(Picture("Where harm can be read, by position", caption, (panel,)))
    return tuple(shown)


def _run(bench: Bench) -> Findings:
    return activation_probing(
        bench.activations, permutations=bench.settings.permutations, seed=bench.seed
    )


ANALYSES.register("activation_probing")(
    Analysis(
        title="Activation probing",
        question="At which layers and positions can harmful be told from harmless prompts?",
        method="Scores of held-out prompts along the mean difference of the others, coordinates "
        "standardised: AUC with DeLong's interval, d', and true positives at 1 % false ones.",
        null="labels shuffled within pairs, largest AUC of all places",
        source="DeLong et al. 1988 (doi:10.2307/2531595); max-T: Westfall and Young 1993",
        cost="none beyond PROBE",
        run=_run,
        pictures=pictures,
    )
)
