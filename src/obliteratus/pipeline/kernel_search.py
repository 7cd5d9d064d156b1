"""The black-box search of DISTILL: a direction and a kernel of strengths per component, by trials.

What a trial changes, what it measures, and which trial is used; the trials themselves are run by
:mod:`obliteratus.pipeline.trials`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.extraction import Extraction, extraction
from obliteratus.directions.filters import FILTERS
from obliteratus.directions.kernel import Kernel, component_groups, interpolated, kernel_strengths
from obliteratus.directions.placement import PLACEMENTS
from obliteratus.directions.reliability import reliability
from obliteratus.directions.samples import samples_at
from obliteratus.directions.score import Scorer, mean_or_none, spread
from obliteratus.errors import DirectionError, UsageError
from obliteratus.events import without_progress
from obliteratus.measure.behaviour import BEHAVIOURS, Behaviour
from obliteratus.measure.early_stop import early_stop
from obliteratus.measure.generation import generate
from obliteratus.measure.judges.base import Exchange
from obliteratus.measure.outcomes import Outcome as Judgement
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import SiteStrengths, removal
from obliteratus.pipeline.trials import Outcome, Suggest, Trial, pareto_front, search_by_trials
from obliteratus.probe.activations import Activations
from obliteratus.prompts.contrast import Prompt, Splits
from obliteratus.settings import DistillSettings, RunSettings
from obliteratus.shapes import Component, Layer
from obliteratus.store import sha256_of_file

LARGEST = 1.5
"""The strongest peak that is tried: half of what was written is turned round."""


@dataclass(frozen=True)
class Attempt:
    """An edit that a trial tries: directions of every block, and a kernel per component.

    ``index`` is the place of the direction among the blocks, None where each has its own.
    """

    basis: Mapping[Layer, Float64[Tensor, "1 d_model"]]
    kernels: Mapping[Component, Kernel]
    index: float | None

    @property
    def strengths(self) -> SiteStrengths:
        """The strength in each component of each block."""
        return kernel_strengths(self.kernels, len(self.basis))


@dataclass(frozen=True)
class KernelSearch:
    """What a search by trials needs; ``folder`` is where its journal is.

    ``scorer`` measures the KL on its harmless select prompts; harmful select prompts are answered.
    """

    model: LoadedModel
    splits: Splits
    settings: RunSettings
    activations: Activations
    scorer: Scorer
    folder: Path

    def searched(self, found: Directions) -> Directions:
        """Return ``found`` with the direction and the strengths of the best trial.

        Of all trials whose mean first-token KL is within ``distill.max_kl``, the one with the
        fewest refusals; of several the one of least KL. The provenance holds the front of all
        trials, without any answer.

        Raises:
            UsageError: the extractor has filters, or a direction for each layer.
            DirectionError: the model refuses none of the select prompts, or no trial is within
                ``distill.max_kl``.
            StorageError: the journal is in use, or damaged.
        """
        distill = self.settings.distill
        check_searchable(distill)
        original, words = self._judged(), self._behaviour.words
        if "refusal" not in original:
            raise DirectionError(
                f"the model {words.shows} none of {len(original)} {words.provoking} select "
                "prompts, so a search has nothing to lower. Use other prompts, or raise "
                f"distill.kernel.tokens where {words.answers} show late."
            )
        trials = search_by_trials(
            self._tried,
            self.folder,
            trials=distill.kernel.trials,
            startup_trials=distill.kernel.startup_trials,
            objectives=2,
            seed=self.settings.seed,
            task="kernel search",
        )
        chosen = fewest_refusals(trials, distill.max_kl)
        facts = {
            "trials": len(trials),
            "prompts": [len(self._harmful), len(self.scorer.original.kl)],
            "original": {name: original.count(name) for name in ("refusal", "degenerate")},
            "chosen": self._as_json(chosen),
            "front": [self._as_json(trial) for trial in pareto_front(trials)],
        }
        return self._directions(found, self._attempt(_again(chosen)), facts)

    def _tried(self, suggest: Suggest) -> Outcome:
        """Return the refusals and the KL of one attempt, through hooks."""
        attempt = self._attempt(suggest)
        with without_progress():
            effect = self.scorer.effect(attempt.basis, strengths=attempt.strengths)
            judged = self._judged(attempt)
        facts = {
            "degenerate": judged.count("degenerate"),
            "log_odds": mean_or_none(effect.log_odds),
        }
        return Outcome((float(judged.count("refusal")), float(effect.kl.mean())), facts)

    def _attempt(self, suggest: Suggest) -> Attempt:
        """Return the edit of the suggested parameters."""
        n_layers = self.model.anatomy.n_layers
        index = None
        if self.settings.distill.selection != "per_layer":
            # The last output that the published rule would choose from, as in distill().
            deepest = max(0, int(self.settings.distill.max_depth * n_layers) - 2)
            index = suggest("layer", 0.0, float(deepest))
            row = interpolated(self._rows, index)
            basis: dict[Layer, Tensor] = dict.fromkeys(range(n_layers), row[None])
        else:
            basis = {layer: row[None] for layer, row in enumerate(self._rows)}
        kernels: dict[Component, Kernel] = {}
        for group in component_groups(self.model.anatomy.writers):
            largest = suggest(f"{group[0]}.largest", 0.0, LARGEST)
            kernel = Kernel(
                largest=largest,
                position=suggest(f"{group[0]}.position", 0.0, float(n_layers - 1)),
                smallest=largest * suggest(f"{group[0]}.least_share", 0.0, 1.0),
                distance=suggest(f"{group[0]}.distance", 1.0, float(max(1, n_layers - 1))),
            )
            kernels |= dict.fromkeys(group, kernel)
        return Attempt(basis, kernels, index)

    def _judged(self, attempt: Attempt | None = None) -> list[Judgement]:
        """Return what the judge says of the answers to the harmful prompts, which are dropped.

        An answer stops where what the judge will say of it cannot change any more.
        """
        judge, limit = self._behaviour.judged_by(), self.settings.distill.kernel.tokens
        stop = "certain" if judge.can_settle else "off"
        texts = tuple(prompt.text for prompt in self._harmful)
        edits = ()
        if attempt is not None:
            edits = removal(
                self.model,
                attempt.basis,
                strengths=attempt.strengths,
                post_norm=self.scorer.post_norm,
            )
        with edited(self.model, edits):
            answers = generate(
                self.model,
                self._encoded,
                max_new_tokens=limit,
                task="answer",
                enough=early_stop(stop, judge, texts, limit),
            )
        asked = zip(texts, answers, strict=True)
        rulings = judge.read([Exchange(text, answer) for text, answer in asked])
        return [ruling.outcome for ruling in rulings]

    @property
    def _behaviour(self) -> Behaviour:
        return BEHAVIOURS[self.settings.behaviour]

    @cached_property
    def _harmful(self) -> tuple[Prompt, ...]:
        return spread(self.splits.select.harmful, self.settings.distill.kernel.prompts)

    @cached_property
    def _encoded(self) -> Encoded:
        texts = [prompt.text for prompt in self._harmful]
        return encode(self.model, texts, system=self.settings.prompts.system)

    @cached_property
    def _position(self) -> int:
        """The last token of the prompt, whose stream predicts the first of the answer."""
        return max(self.activations.positions)

    @cached_property
    def _extract(self) -> Extraction:
        distill = self.settings.distill
        return extraction(distill.extractor, distill.knobs)

    @cached_property
    def _rows(self) -> tuple[Float64[Tensor, " d_model"], ...]:
        """The unit direction behind every block."""
        return tuple(
            self._extract(samples_at(self.activations, layer, self._position), max_rank=1)[0]
            for layer in range(self.model.anatomy.n_layers)
        )

    def _directions(self, found: Directions, attempt: Attempt, facts: dict[str, Any]) -> Directions:
        """Return ``found`` with what ``attempt`` removes; it was read at the nearest layer."""
        shares = {
            str(layer): self._share(layer, attempt.basis[layer][0])
            for layer in attempt.basis
            if attempt.index is None or layer == round(attempt.index)
        }
        result = replace(
            found,
            basis=attempt.basis,
            strengths=attempt.strengths,
            strength=1.0,
            source_layer=None,
            position=self._position,
            mean=None,
            provenance={**found.provenance, "shares": shares, "kernel": facts},
        )
        if attempt.index is None:
            return result
        nearest = round(attempt.index)
        source = samples_at(self.activations, nearest, self._position)
        place = self.activations.positions.index(self._position)
        return replace(
            result,
            source_layer=nearest,
            mean=self.activations.harmless.moments[nearest].mean[place],
            reliability=reliability(source, self._extract, seed=self.settings.seed),
        )

    def _share(self, layer: Layer, row: Float64[Tensor, " d_model"]) -> float:
        """Return |r · δ| / ‖δ‖ of a direction r, δ the mean difference behind ``layer``."""
        delta = samples_at(self.activations, layer, self._position).delta
        return float((row @ delta).abs() / delta.norm())

    def _as_json(self, trial: Trial) -> dict[str, Any]:
        attempt, (refusals, kl) = self._attempt(_again(trial)), trial.outcome.objectives
        return {
            "refusals": int(refusals),
            "kl": kl,
            **trial.outcome.facts,
            "layer": attempt.index,
            "kernels": {name: asdict(kernel) for name, kernel in attempt.kernels.items()},
        }


def search_identity() -> list[str]:
    """Return what else determines the trials: the code that makes them, and Optuna's version."""
    files = [Path(inspect.getfile(each)) for each in (Kernel, Trial, KernelSearch)]
    return [version("optuna"), *map(sha256_of_file, files)]


def check_searchable(settings: DistillSettings) -> None:
    """Check that the extractor gives one orthogonal direction, which can stand for any layer.

    Raises:
        UsageError: it has filters, or a direction for each layer where it is removed.
    """
    if settings.kernel.trials and settings.extractor in (*FILTERS, *PLACEMENTS):
        raise UsageError(
            "distill.kernel takes directions between those of two layers, and "
            f"'{settings.extractor}' has none there: it has filters, or changes with the layer "
            "that is edited. Set distill.extractor=difference_of_means."
        )


def fewest_refusals(trials: tuple[Trial, ...], max_kl: float) -> Trial:
    """Return the trial of fewest refusals among those of a KL within ``max_kl``; then of least KL.

    Raises:
        DirectionError: there is none.
    """
    allowed = [trial for trial in trials if trial.outcome.objectives[1] <= max_kl]
    if not allowed:
        least = min(trial.outcome.objectives[1] for trial in trials)
        raise DirectionError(
            f"none of {len(trials)} trials keeps the first-token KL within distill.max_kl="
            f"{max_kl:g}; the least is {least:.3g}. Raise distill.max_kl or distill.kernel.trials: "
            "finished trials are used again."
        )
    return min(allowed, key=lambda trial: trial.outcome.objectives)


def _again(trial: Trial) -> Suggest:
    return lambda name, low, high: trial.parameters[name]
