"""What a linear probe of harm is worth: nested cross-validation, control labels, other categories.

At every layer a ridge probe is fitted to four fifths of the prompts, its penalty chosen inside them
by scikit-learn (leave-one-out), and asked about the rest; pairs stay together. A probe that is
right may still say little, so it is held against two things:

* **control labels** (Hewitt and Liang 2019): prompts are of types, their category and class, and
  every type gets a random label. Harm is one such labelling among many; a probe that learns any of
  them as well has memorised types. Selectivity = accuracy − accuracy on control labels.
* **other categories**: the probe of all categories but one, asked about that one. Without a common
  code of harm it is at chance, whatever ordinary cross-validation says.

All accuracies are balanced. Coordinates are divided by their standard deviation over all prompts,
labels unseen, and rotated onto the prompts' principal axes, which changes no ridge probe and makes
its cost that of the number of prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from obliteratus.analysis.activation_probing import auc_interval
from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.probe_accuracy import (
    Labels,
    accuracy_interval,
    balanced,
    selectivity,
    wilson_of_variance,
)
from obliteratus.errors import MeasurementError
from obliteratus.events import track
from obliteratus.pictures.spec import Line, Panel, Picture, Role, estimates_dots
from obliteratus.probe.activations import Activations
from obliteratus.statistics.claims import claim_above
from obliteratus.statistics.estimate import Estimate, Verdict

FOLDS = 5
FEWEST = 2 * FOLDS
"""Prompts of each class."""
CONTROLS = 10
"""Random labellings of the types."""
FEWEST_TYPES = 6
"""Three categories of two classes: ten balanced labellings that are not harm itself."""
PENALTIES = np.logspace(-3, 3, 7)
"""Of the mean squared length of a prompt, which is 1."""
SIGNIFICANT = 0.05
NEGLIGIBLE = 0.6
"""An accuracy that surely stays below this is as good as none."""
SMALLEST = 1e-10  # of the largest variance: axes below it are rounding


@dataclass
class _Profile:
    """What was found, layer by layer."""

    rows: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, Float64[np.ndarray, " layer"]]:
        return {name: np.array(values) for name, values in self.rows.items()}


def linear_probe_classifiers(
    activations: Activations, *, position: int, permutations: int, seed: int
) -> Findings:
    """Return what linear probes of every layer can tell, held against what they should not.

    The p-value of the accuracy is that of the best layer of ``permutations`` shufflings of harm
    (within pairs, where paired). Transfer to other categories is measured at the best layer.

    Raises:
        MeasurementError: prompts were not kept, or there are fewer than 10 of a class.
    """
    sides = (activations.harmful, activations.harmless)
    counts = [len(side.prompt_ids) for side in sides]
    if not all(side.kept for side in sides) or min(counts) < FEWEST:
        raise MeasurementError(
            f"probes need every activation of at least {FEWEST} prompts of each class; there are "
            f"{counts[0]} harmful and {counts[1]} harmless. Probe more prompts, with "
            'keep="prompts".'
        )
    rng = np.random.default_rng(seed)
    categories = (*activations.harmful.categories, *activations.harmless.categories)
    labels = dealt(counts, categories, activations.is_paired, permutations, rng)
    column = activations.positions.index(position)
    layers, profile, null = activations.layers, _Profile(), np.zeros(permutations)
    for layer in track(layers, task="probe classifiers", total=len(layers), unit="layers"):
        stream = np.concatenate([side.kept[layer][:, column].double().numpy() for side in sides])
        scores = held_out_scores(principal(stream), labels.all, _folds(labels.part))
        accuracy, low, high = accuracy_interval(scores[:, 0], labels.harm, labels.unit)
        auc, _ = auc_interval(
            scores[: counts[0], 0], scores[counts[0] :, 0], is_paired=activations.is_paired
        )
        null = np.maximum(null, balanced(scores[:, 1 : 1 + permutations], labels.shuffled))
        chosen = selectivity(scores[:, 0], scores[:, 1 + permutations :], labels, rng)
        profile.add(accuracy=accuracy, accuracy_low=low, accuracy_high=high, auc=auc)
        profile.add(selectivity=chosen[0], selectivity_low=chosen[1], selectivity_high=chosen[2])
    arrays = profile.arrays()
    best = int(arrays["accuracy"].argmax())
    arrays["control"] = arrays["accuracy"] - arrays["selectivity"]
    arrays["null_largest"] = null
    p = float(1 + (null >= arrays["accuracy"][best] - 1e-12).sum()) / (1 + permutations)
    stream = np.concatenate([side.kept[layers[best]][:, column].double().numpy() for side in sides])
    names, folds = _left_out(categories, counts, rng)
    estimates = _estimates(arrays, best, p, n=len(np.unique(labels.unit)), seed=seed)
    if names:
        scores = held_out_scores(principal(stream), labels.harm[:, None], folds)[:, 0]
        each = np.array([balanced(scores[f, None], labels.harm[f, None])[0] for f in folds])
        estimates["transfer"] = _transfer(each, len(scores), seed)
        arrays["transfer"] = each
    if estimates["accuracy"].verdict != "supported":
        estimates = {name: _unasked(each) for name, each in estimates.items()}
    return Findings(
        module="linear_probe_classifiers",
        headline=_headline(estimates, layers[best]),
        estimates=estimates,
        arrays=arrays,
        facts={
            "layers": list(layers),
            "position": position,
            "best": layers[best],
            "p": p,
            "types": "category and class" if labels.has_types else "single prompts: no categories",
            "categories": names,
        },
    )


def dealt(
    counts: Sequence[int],
    categories: Sequence[str | None],
    is_paired: bool,
    permutations: int,
    rng: np.random.Generator,
) -> Labels:
    """Return all labels of the prompts, the harmful ones first, and their outer folds."""
    harm = np.repeat([1.0, -1.0], counts)
    total = len(harm)
    if is_paired:
        unit = np.tile(np.arange(counts[0]), 2)
        part = np.tile(rng.permutation(np.arange(counts[0]) % FOLDS), 2)
        turned = np.tile(rng.choice([1.0, -1.0], size=(counts[0], permutations)), (2, 1))
        shuffled = harm[:, None] * turned
    else:
        unit = np.arange(total)
        part = np.concatenate([rng.permutation(np.arange(count) % FOLDS) for count in counts])
        shuffled = np.stack([rng.permutation(harm) for _ in range(permutations)], axis=1)
    kinds = [(name, label) for name, label in zip(categories, harm, strict=True) if name]
    types = sorted(set(kinds))
    has_types = len(kinds) == total and len(types) >= FEWEST_TYPES
    kind = np.array([types.index(each) for each in kinds]) if has_types else np.arange(total)
    control = [_labelling(kind, harm, rng) for _ in range(CONTROLS)]
    return Labels(harm, shuffled, np.stack(control, axis=1), unit, part, has_types)


def _labelling(
    kind: Int64[np.ndarray, " prompt"],
    harm: Float64[np.ndarray, " prompt"],
    rng: np.random.Generator,
) -> Float64[np.ndarray, " prompt"]:
    """Label half of the kinds +1, at random, but not as harm itself does."""
    count = int(kind.max()) + 1
    while True:
        label = rng.permutation(np.where(np.arange(count) < count // 2, 1.0, -1.0))[kind]
        if abs(float((label * harm).sum())) < len(harm):
            return label


def principal(
    stream: Float64[np.ndarray, "prompt d_model"],
) -> Float64[np.ndarray, "prompt axis"]:
    """Return the prompts along all their principal axes, mean squared length 1."""
    centred = stream - stream.mean(axis=0)
    deviation = centred.std(axis=0)
    unit = centred / np.where(deviation > 0, deviation, 1.0)
    gram = unit @ unit.T
    values, vectors = np.linalg.eigh(gram / max(float(np.trace(gram)) / len(gram), 1e-30))
    kept = values > SMALLEST * max(float(values[-1]), SMALLEST)
    if not kept.any():  # every prompt has the same stream: the embedding of a template token
        return np.zeros((len(stream), 1))
    return vectors[:, kept] * np.sqrt(values[kept])


def held_out_scores(
    features: Float64[np.ndarray, "prompt axis"],
    labels: Float64[np.ndarray, "prompt labels"],
    folds: Sequence[Bool[np.ndarray, " prompt"]],
) -> Float64[np.ndarray, "prompt labels"]:
    """Return the score of every prompt by a probe that was fitted without its fold.

    Ridge regression on ±1 for all labels at once, each with its own penalty by leave-one-out on the
    fitted prompts (scikit-learn).
    """
    from sklearn.linear_model import RidgeCV  # half a second to import

    found = np.zeros(labels.shape)
    for held in folds:
        probe = RidgeCV(alphas=PENALTIES, alpha_per_target=True)
        probe.fit(features[~held], labels[~held])
        found[held] = np.asarray(probe.predict(features[held])).reshape(-1, labels.shape[1])
    return found


def _folds(part: Int64[np.ndarray, " prompt"]) -> list[Bool[np.ndarray, " prompt"]]:
    return [part == each for each in range(FOLDS)]


def _left_out(
    categories: Sequence[str | None], counts: Sequence[int], rng: np.random.Generator
) -> tuple[list[str], list[Bool[np.ndarray, " prompt"]]]:
    """Return the categories of the harmful prompts, and for each the prompts to ask about.

    Harmless prompts go with their category; those of none are dealt to all.
    """
    harmful = categories[: counts[0]]
    names = sorted({name for name in harmful if name is not None})
    if len(names) < 2 or None in harmful:
        return [], []
    own = np.array([names.index(name) if name in names else -1 for name in categories])
    strangers = np.flatnonzero(own < 0)
    own[strangers] = rng.permutation(np.arange(len(strangers)) % len(names))
    folds = [own == each for each in range(len(names))]
    is_asked = [bool(held[: counts[0]].any() and held[counts[0] :].any()) for held in folds]
    return (
        [name for name, asked in zip(names, is_asked, strict=True) if asked],
        [held for held, asked in zip(folds, is_asked, strict=True) if asked],
    )


def _unasked(estimate: Estimate) -> Estimate:
    """Take back a claim on what probes tell where it is not shown that they tell anything.

    The layer is the best of all, which flatters what is measured there.
    """
    is_claimed = estimate.verdict == "supported"
    return replace(estimate, verdict="undetermined") if is_claimed else estimate


def _transfer(each: Float64[np.ndarray, " category"], n: int, seed: int) -> Estimate:
    value, count = float(each.mean()), len(each)
    interval = wilson_of_variance(value, float(each.var(ddof=1)) / count, n, count - 1)
    return claim_above(Estimate(value, interval, n=count, null=0.5, seed=seed), 0.5)


def _estimates(
    arrays: dict[str, Float64[np.ndarray, " layer"]], best: int, p: float, *, n: int, seed: int
) -> dict[str, Estimate]:
    low, high = float(arrays["accuracy_low"][best]), float(arrays["accuracy_high"][best])
    verdict: Verdict = "undetermined"
    if p < SIGNIFICANT:
        verdict = "supported"
    elif float(arrays["accuracy_high"].max()) < NEGLIGIBLE:
        verdict = "not_supported"
    chance = float(np.quantile(arrays["null_largest"], 1 - SIGNIFICANT))
    value = float(arrays["accuracy"][best])
    over = Estimate(
        float(arrays["selectivity"][best]),
        (float(arrays["selectivity_low"][best]), float(arrays["selectivity_high"][best])),
        n=n,
        null=0.0,
        seed=seed,
    )
    return {
        "accuracy": Estimate(value, (low, high), n=n, null=chance, seed=seed, verdict=verdict),
        "selectivity": claim_above(over, 0.0),
    }


def _headline(estimates: dict[str, Estimate], layer: object) -> str:
    accuracy, over = estimates["accuracy"], estimates["selectivity"]
    low, high = accuracy.interval
    numbers = f"held-out accuracy {accuracy.value:.2f} ({low:.2f} to {high:.2f})"
    if accuracy.verdict != "supported":
        nothing = accuracy.verdict == "not_supported"
        start = "Linear probes read no harm" if nothing else "Too few prompts to say"
        return f"{start}: {numbers} at best; shuffled labels reach {accuracy.null:.2f}."
    text = (
        f"A linear probe reads harm best at layer {layer}: {numbers}, {over.value:+.2f} "
        f"({over.interval[0]:+.2f} to {over.interval[1]:+.2f}) beyond control labels"
    )
    if "transfer" not in estimates:
        return f"{text}; transfer between categories is not known."
    moved = estimates["transfer"]
    ends = f"{moved.interval[0]:.2f} to {moved.interval[1]:.2f}"
    return f"{text}; {moved.value:.2f} ({ends}) in categories that it has not seen."


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw accuracy and control by layer, and the transfer to each category."""
    layers = found.facts["layers"]
    x = tuple(-1.0 if layer == "embedding" else float(layer) for layer in layers)

    def at(name: str) -> tuple[float, ...]:
        return tuple(found.arrays[name].tolist())

    chance = found.estimates["accuracy"].null or 0.5
    lines = (
        Line("harm", x, at("accuracy"), at("accuracy_low"), at("accuracy_high")),
        Line("control labels", x, at("control"), role="original"),
        Line("shuffled, 95 %", x, (chance,) * len(x), role="muted", dashed=True),
    )
    over = Line("", x, at("selectivity"), at("selectivity_low"), at("selectivity_high"))
    shown = [
        Picture(
            "What linear probes can tell",
            "Held-out balanced accuracy at every layer, and below it what is left of it beyond "
            "control labels (random for each category and class). Bands are 95 % intervals. −1 is "
            "the embedding.",
            (
                Panel(lines, "layer (block output)", "accuracy", zero=False, whole_x=True),
                Panel((over,), "layer (block output)", "selectivity", whole_x=True),
            ),
        )
    ]
    if "transfer" in found.estimates:
        each = found.arrays["transfer"]
        dots: list[tuple[str, Estimate, Role]] = [
            (name, Estimate(float(value), (float(value), float(value)), n=1), "edited")
            for name, value in zip(found.facts["categories"], each, strict=True)
        ]
        dots.insert(0, ("all categories", found.estimates["transfer"], "refusal"))
        caption = (
            f"Accuracy at layer {found.facts['best']} on each category by a probe that was fitted "
            "to the others; 0.5 is chance."
        )
        marks = (estimates_dots(dots),)
        panel = Panel(marks, "accuracy in an unseen category", zero=False)
        shown.append(Picture("Does it carry over to other categories?", caption, (panel,)))
    return tuple(shown)


def _run(bench: Bench) -> Findings:
    return linear_probe_classifiers(
        bench.activations,
        position=max(bench.activations.positions),
        permutations=bench.settings.permutations,
        seed=bench.seed,
    )


ANALYSES.register("linear_probe_classifiers")(
    Analysis(
        title="Linear probe classifiers",
        question="How well do linear probes read harm, beyond memorising kinds of prompts?",
        method="Ridge probes by nested cross-validation with pairs kept together; accuracy beyond "
        "control labels, which are random for each category and class; and accuracy in categories "
        "that the probe has not seen.",
        null="harm shuffled within pairs, best layer of each shuffling; control labels of types",
        source="arXiv:1909.03368 (control tasks); arXiv:1610.01644 (probes by layer)",
        cost="none beyond PROBE",
        run=_run,
        pictures=pictures,
    )
)
