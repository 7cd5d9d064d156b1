"""From which token positions is refusal decided? The contrast by position and layer, then ablation.

The map holds, for every layer and position, how far the squared mean difference between harmful and
harmless prompts is above what shuffled labels give there, in their standard deviations. Every
coordinate is first divided by its standard deviation over all prompts, and no prompt meets itself
in a product. The raw ‖δ‖ would be largest at attention sinks, whose activations are hundreds of
times as long and carry nothing; positions that reach the first token of a prompt are left out.
p-values are those of the largest value of all places (max-T, Westfall and Young 1993).

A contrast that can be read is not one that is used: where the model can be run, the direction is
removed at all tokens but one position (:mod:`obliteratus.analysis.position_ablation`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.position_ablation import PositionAblation, position_ablation
from obliteratus.directions.samples import Samples, samples_at
from obliteratus.directions.separation import separation
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.events import track
from obliteratus.models.chat import encode
from obliteratus.pictures.spec import Heat, Panel, Picture, Role, estimates_dots
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

FEWEST = 8
SIGNIFICANT = 0.05
NEGLIGIBLE = 0.36
"""Standard deviations between the classes that are as good as none: an AUC of 0.6."""


@dataclass(frozen=True)
class Shuffles:
    """Signed weights of the units, column by column: of the true labels, then of shuffled ones."""

    weights: Float64[np.ndarray, "unit labels"]

    @classmethod
    def of(
        cls, harmful: int, harmless: int, *, is_paired: bool, count: int, seed: int
    ) -> "Shuffles":
        """Draw ``count`` shuffles: signs of pairs, or all prompts dealt anew."""
        rng = np.random.default_rng(seed)
        if is_paired:
            signs = rng.choice([1.0, -1.0], size=(harmful, count))
            return cls(np.concatenate([np.ones((harmful, 1)), signs], axis=1) / harmful)
        true = np.repeat([1 / harmful, -1 / harmless], [harmful, harmless])
        columns = [true, *(rng.permutation(true) for _ in range(count))]
        return cls(np.stack(columns, axis=1))

    def squared_lengths(
        self, units: Float64[np.ndarray, "unit d_model"]
    ) -> Float64[np.ndarray, " labels"]:
        """Return ‖δ‖² under all labels, without the products of a unit with itself."""
        gram = units @ units.T
        np.fill_diagonal(gram, 0.0)
        return np.einsum("ul,ul->l", self.weights, gram @ self.weights)


def multi_token_position(
    activations: Activations,
    *,
    permutations: int,
    seed: int,
    shortest: int | None = None,
    ablation: PositionAblation | None = None,
    no_ablation: str = "the model was not run",
) -> Findings:
    """Return the contrast at every layer and position, and what sparing positions undoes.

    ``shortest`` is the number of tokens of the shortest prompt: a position that is its first token
    is left out. Without ``ablation`` the map is no evidence of use, for the reason ``no_ablation``.

    Raises:
        MeasurementError: only one position was captured, prompts were not kept, or there are fewer
            than 8 of a class.
    """
    counts = [len(side.prompt_ids) for side in (activations.harmful, activations.harmless)]
    positions = usable_positions(activations, shortest)
    if not activations.harmful.kept or not activations.harmless.kept or min(counts) < FEWEST:
        raise MeasurementError(
            f"positions are compared with at least {FEWEST} prompts of each class; there are "
            f"{counts[0]} harmful and {counts[1]} harmless. Probe more prompts, with "
            'keep="prompts".'
        )
    shuffles = Shuffles.of(*counts, is_paired=activations.is_paired, count=permutations, seed=seed)
    layers = activations.layers
    shape = (len(layers), len(positions))
    arrays = {name: np.zeros(shape) for name in ("contrast", "raw_delta", "stream_norm")}
    null = np.full(permutations, -np.inf)
    places = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    for row, column in track(places, task="positions", total=len(places), unit="places"):
        samples = samples_at(activations, layers[row], positions[column])
        found = shuffles.squared_lengths(_units(standardised(samples)))
        spread = float(found[1:].std())
        if spread > 0:  # otherwise every prompt has the same stream there
            scaled = (found - found[1:].mean()) / spread
            arrays["contrast"][row, column] = scaled[0]
            null = np.maximum(null, scaled[1:])
        arrays["raw_delta"][row, column] = float(samples.delta.norm())
        arrays["stream_norm"][row, column] = float(samples.harmless.double().norm(dim=1).median())
    reached = (null >= arrays["contrast"][..., None] - 1e-9).sum(axis=-1)
    arrays["p"] = (1 + reached) / (1 + permutations)
    estimates, best = _by_position(activations, positions, arrays, sum(counts), seed)
    causal = {} if ablation is None else ablation.estimates(seed=seed)
    return Findings(
        module="multi_token_position",
        headline=_headline(estimates, causal, positions, best),
        estimates={**estimates, **causal},
        arrays={**arrays, "null_largest": null},
        facts={
            "layers": list(layers),
            "positions": list(positions),
            "left_out": sorted(set(activations.positions) - set(positions)),
            "best_layers": {str(position): best[position] for position in positions},
            "causal": None if ablation is None else sorted(causal),
            "no_causal": no_ablation if ablation is None else "",
        },
    )


def usable_positions(activations: Activations, shortest: int | None) -> tuple[int, ...]:
    """Return the captured positions that no prompt begins with.

    Raises:
        MeasurementError: fewer than two are left.
    """
    positions = tuple(
        each for each in activations.positions if shortest is None or -each < shortest
    )
    if len(positions) < 2:
        raise MeasurementError(
            f"{len(activations.positions)} position was captured and positions are to be compared. "
            "Set probe.positions=post_instruction (of a model with a chat template)."
            if len(activations.positions) == 1
            else f"of {len(activations.positions)} captured positions {len(positions)} lie behind "
            f"the first token of every prompt; the shortest has {shortest} tokens. Leave short "
            "prompts out."
        )
    return positions


def standardised(samples: Samples) -> Samples:
    """Return ``samples`` with every coordinate divided by its deviation over all prompts."""
    both = torch.cat([samples.harmful, samples.harmless]).double()
    deviation = both.std(dim=0, correction=0)
    scale = torch.where(deviation > 0, 1 / deviation, 0.0)
    middle = both.mean(dim=0)
    return replace(
        samples,
        harmful=(samples.harmful.double() - middle) * scale,
        harmless=(samples.harmless.double() - middle) * scale,
        delta=samples.delta * scale,
    )


def _units(samples: Samples) -> Float64[np.ndarray, "unit d_model"]:
    if samples.is_paired:
        return (samples.harmful - samples.harmless).cpu().numpy()
    return torch.cat([samples.harmful, samples.harmless]).cpu().numpy()


def _by_position(
    activations: Activations,
    positions: tuple[int, ...],
    arrays: Mapping[str, Float64[np.ndarray, "layer position"]],
    n: int,
    seed: int,
) -> tuple[dict[str, Estimate], dict[int, Layer]]:
    """Return the separation at the best layer of every position, and these layers."""
    estimates: dict[str, Estimate] = {}
    best: dict[int, Layer] = {}
    for column, position in enumerate(positions):
        row = int(arrays["contrast"][:, column].argmax())
        best[position] = activations.layers[row]
        here = separation(
            standardised(samples_at(activations, best[position], position)), seed=seed
        )
        verdict: Verdict = "undetermined"
        if arrays["p"][row, column] < SIGNIFICANT:
            verdict = "supported"
        elif here.interval[1] < NEGLIGIBLE:
            verdict = "not_supported"
        estimates[f"position {position}"] = replace(here, n=n, verdict=verdict)
    return estimates, best


def _headline(
    estimates: Mapping[str, Estimate],
    causal: Mapping[str, Estimate],
    positions: tuple[int, ...],
    best: Mapping[int, Layer],
) -> str:
    shown = [each for each in positions if estimates[f"position {each}"].verdict == "supported"]
    if not shown:
        return f"No position of {len(positions)} shows a contrast beyond shuffled labels."
    top = max(shown, key=lambda each: estimates[f"position {each}"].value)
    here = estimates[f"position {top}"]
    low, high = here.interval
    text = (
        f"The contrast is there at {len(shown)} of {len(positions)} positions, most at {top} "
        f"(layer {best[top]}, {here.value:.1f} standard deviations, {low:.1f} to {high:.1f})"
    )
    if not causal:
        return f"{text}; that it is used there is not tested."
    used = [name.removeprefix("spared ") for name, each in causal.items()
            if name.startswith("spared ") and each.verdict == "supported"]  # fmt: skip
    if not used:
        return f"{text}; sparing no single position keeps refusal."
    return f"{text}; the direction acts from {', '.join(used)}."


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw the map, the separation at every position, and what sparing positions undoes."""
    layers, positions = found.facts["layers"], found.facts["positions"]
    heat = Heat(
        found.arrays["contrast"],
        tuple(map(str, layers)),
        tuple(map(str, positions)),
        unit="SD of the null",
    )
    shown = [
        Picture(
            "Where the contrast is, by position",
            "Squared mean difference of harmful and harmless prompts above that of shuffled "
            "labels, in their standard deviations. Positions count from the end of the prompt.",
            (Panel((heat,), "position", "layer"),),
        ),
        Picture(
            "How far apart the classes are",
            "Standard deviations between the classes along their difference, at the best layer of "
            "each position, with the noise of few prompts taken out and a 95 % interval. Grey: not "
            "beyond shuffled labels.",
            (_dots(found, [f"position {each}" for each in positions], "standard deviations"),),
        ),
    ]
    if found.facts["causal"]:
        names = ["removed everywhere", *(f"spared {each}" for each in [*positions, "earlier"])]
        caption = (
            "First the fall of the refusal log-odds with the direction removed at all tokens, then "
            "how much of it returns when one place is spared. Grey: not beyond a random direction."
        )
        panel = _dots(found, names, "refusal log-odds")
        shown.append(Picture("Where the direction acts from", caption, (panel,)))
    return tuple(shown)


def _dots(found: Findings, names: list[str], label: str) -> Panel:
    def role(each: Estimate) -> Role:
        return "edited" if each.verdict == "supported" else "original"

    rows: list[tuple[str, Estimate, Role]] = [
        (name, found.estimates[name], role(found.estimates[name])) for name in names
    ]
    return Panel((estimates_dots(rows),), label)


def _run(bench: Bench) -> Findings:
    activations = bench.activations
    _ = usable_positions(activations, None)  # refuse before anything is run
    fit = bench.splits.fit
    texts = [prompt.text for prompt in (*fit.harmful, *fit.harmless)]
    encoded = encode(bench.model, texts, system=bench.system)
    shortest = min(len(ids) for ids in encoded.ids)
    ablation, why = None, ""
    try:
        ablation = position_ablation(
            bench.model,
            bench.subset.harmful,
            bench.tokens,
            bench.directions.basis,
            usable_positions(activations, shortest),
            seed=bench.seed,
        )
    except (DirectionError, MeasurementError) as error:
        why = f"no direction could be removed position by position: {error}"
    return multi_token_position(
        activations,
        permutations=bench.settings.permutations,
        seed=bench.seed,
        shortest=shortest,
        ablation=ablation,
        no_ablation=why,
    )


ANALYSES.register("multi_token_position")(
    Analysis(
        title="Multi-token position",
        question="At which token positions does refusal show, and from which does it act?",
        method="The mean difference at every layer and position against shuffled labels, "
        "coordinates standardised and the first token left out; then the direction removed at all "
        "tokens but one position.",
        null="labels shuffled within pairs, largest value of all places; a random direction "
        "removed in the same way",
        source="arXiv:2309.17453 (attention sinks); max-T: Westfall and Young 1993",
        cost="2 × (positions + 2) + 1 runs of the harmful select prompts",
        run=_run,
        pictures=pictures,
    )
)
