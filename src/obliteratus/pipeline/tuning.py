"""The gradient search of DISTILL: which prompts it sees, where it begins, and its null."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.extraction import extraction
from obliteratus.directions.objective import Objective
from obliteratus.directions.permuted import permuted_directions, permuted_prompts, shuffled
from obliteratus.directions.samples import samples_at
from obliteratus.directions.score import Scorer, spread
from obliteratus.directions.selection import least_induce
from obliteratus.directions.tuned import Check, check_tunable, descent, tuned
from obliteratus.errors import DirectionError
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.measure.head import chunks, head_of
from obliteratus.measure.log_odds import RefusalTokens, calibrate, log_odds
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.probe.activations import Activations, PromptClass
from obliteratus.probe.capture import last_states
from obliteratus.prompts.contrast import ContrastSet, Splits
from obliteratus.settings import RunSettings
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Tuning:
    """What a gradient search needs: the model, its prompts, and what was found without gradients.

    ``scorer`` says which layers are edited, and how, and which select prompts decide.
    """

    model: LoadedModel
    splits: Splits
    settings: RunSettings
    activations: Activations
    scorer: Scorer

    @cached_property
    def openings(self) -> RefusalTokens:
        """Every opening that harmful prompts make likelier, however little: none is a way out.

        The tokens that measure refusal are those that the original uses. A search that lowers only
        these finds the others: on qwen2.5-coder-0.5b "I'm sorry" became "As an AI language model".
        """
        return calibrate(
            self.model,
            last_states(self.model, self.activations, "harmful"),
            last_states(self.model, self.activations, "harmless"),
            openings=BEHAVIOURS[self.settings.behaviour].openings,
            margin=0.0,
            ratio=1.0,
        )

    def tuned(self, found: Directions) -> Directions:
        """Return ``found`` tuned; its provenance says what the null gives, where that was asked.

        Raises:
            DirectionError: ``found`` is not one basis for all layers, or the model refuses none of
                the harmful fit prompts in its first token.
        """
        check_tunable(found)
        odds = [self._fit_odds(side) for side in ("harmful", "harmless")]
        select, least = self._select_objective(), least_induce(*(float(o.mean()) for o in odds))
        result = tuned(
            found,
            self._fit_objective(self.splits.fit, odds[0], least),
            select,
            self._start(found),
            self.settings.distill.tune,
            max_kl=self.settings.distill.max_kl,
            seed=self.settings.seed,
        )
        facts = dict(result.provenance["tuning"])
        if self.settings.distill.tune.shuffled_null and facts["front"]:
            path = [(point["kl_weight"], point["step"]) for point in facts["front"]]
            null = self._null(found, torch.cat(odds), least, select, path)
            facts["null"] = null.as_json()
        return replace(result, provenance={**result.provenance, "tuning": facts})

    def _null(
        self,
        found: Directions,
        odds: Float64[Tensor, " prompt"],
        least: float,
        select: Objective,
        path: Sequence[tuple[float, int]],
    ) -> Check:
        """Return what as many steps do that begin and go by shuffled labels.

        ``path`` holds the weights of the KL and the steps made with each.
        """
        fit, seed, settings = self.splits.fit, self.settings.seed, self.settings.distill.tune
        count = len(fit.harmful)
        order = shuffled(count, len(fit.harmless), is_paired=fit.is_paired, seed=seed)
        mixed = permuted_prompts(fit, seed)
        objective = self._fit_objective(mixed, odds[order][:count], least)
        start = self._start(permuted_directions(self.activations, found, seed))
        patient = settings.model_copy(update={"patience": settings.steps})
        end: Check | None = None
        for number, (weight, step) in enumerate(path):
            checks = descent(start, objective, select, patient, weight, seed=seed + number)
            end = next(check for check in checks if check.step == step)
            start.load_state_dict(end.parameters)
        assert end is not None
        return end

    def _fit_odds(self, side: PromptClass) -> Float64[Tensor, " prompt"]:
        """Return the refusal log-odds of the fit prompts, from what PROBE kept."""
        head, states = head_of(self.model), last_states(self.model, self.activations, side)
        ids = self.openings.ids
        found = [log_odds(head.log_probabilities(rows), ids) for rows in chunks(states)]
        return torch.cat(found).cpu()

    def _fit_objective(
        self, fit: ContrastSet, odds: Float64[Tensor, " harmful"], least: float
    ) -> Objective:
        """Return the objective on the harmful prompts that are refused: others can give nothing.

        Refused is what has the log-odds that the selection asks of a prompt to which δ is added.
        """
        refused = tuple(
            p for p, value in zip(fit.harmful, odds.tolist(), strict=True) if value > least
        )
        if not refused:
            words = BEHAVIOURS[self.settings.behaviour].words
            raise DirectionError(
                f"the model {words.shows} none of {len(fit.harmful)} {words.provoking} fit prompts "
                "in its first token, so there is nothing to tune. Use another method, or other "
                "prompts."
            )
        prompts = replace(fit, harmful=refused, is_paired=False)
        return self._objective(prompts, self.settings.distill.tune.harmless_prompts)

    def _select_objective(self) -> Objective:
        """Return the objective on select prompts: more than score the selection, to scale by."""
        select, count = self.splits.select, self.settings.distill.tune.select_prompts
        sides = (spread(select.harmful, count), spread(select.harmless, count))
        return self._objective(ContrastSet(select.name, *sides, is_paired=False), None)

    def _objective(self, prompts: ContrastSet, most_kept: int | None) -> Objective:
        tune = self.settings.distill.tune
        return Objective(
            self.model,
            prompts,
            self.openings,
            response_tokens=tune.response_tokens,
            categories=tune.categories,
            most_kept=most_kept,
            system=self.settings.prompts.system,
            recompute=tune.recompute,
        )

    def _start(self, directions: Directions) -> TunableRemoval:
        """Return the parameters before the first step, with as many rows as are asked for."""
        tune = self.settings.distill.tune
        rows = next(iter(directions.basis.values()))[: tune.rank]
        if tune.rank > len(rows) and directions.source_layer is not None:
            samples = samples_at(
                self.activations, directions.source_layer, directions.position or -1
            )
            extract = extraction(directions.extractor, directions.knobs)
            rows = extract(samples, max_rank=tune.rank)
        if tune.rank > len(rows):
            raise DirectionError(
                f"the extractor '{directions.extractor}' gives {len(rows)} directions where "
                f"distill.tune.rank={tune.rank} are to be tuned; lower it."
            )
        layers: tuple[Layer, ...] = tuple(
            layer for layer in self.scorer.layers if layer in directions.basis
        )
        return TunableRemoval(
            self.model, rows, layers, strength=tune.start, post_norm=self.scorer.post_norm
        )
