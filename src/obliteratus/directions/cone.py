"""Concept cones (arXiv:2502.17420): vectors of which each, and each mixture, mediates refusal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from obliteratus.directions.batches import Batches
from obliteratus.directions.control import Control, control
from obliteratus.directions.rdo_objective import RdoObjective
from obliteratus.directions.score import Effect, Scorer
from obliteratus.directions.selection import least_induce
from obliteratus.events import track
from obliteratus.operator.bases import orthonormalise
from obliteratus.settings import RdoSettings

BETAS = (0.9, 0.98)
"""Of Adam with the largest second moment kept (AMSGrad), as published."""
MIXTURES = 16
"""Random combinations of the vectors that are measured on select prompts; published: 512, by full
answers."""


@dataclass(frozen=True)
class Check:
    """Orthonormal directions after ``step`` steps, and what each does to the select prompts."""

    step: int
    rows: Float64[Tensor, "rank d_model"]
    controls: tuple[Control, ...]

    def objective(self, retain: float) -> float:
        """Return the objective of the worst of the directions."""
        return max(each.objective(retain) for each in self.controls)

    def as_json(self) -> dict[str, Any]:
        """Return step and mean scores of each direction, ready for JSON."""
        return {"step": self.step, "directions": [each.as_json() for each in self.controls]}


@dataclass(frozen=True)
class Cone:
    """A cone of one dimension: its vectors, mixtures of them, and all removed together.

    ``is_kept``: every vector bypasses and induces beyond the null, and removing all of them stays
    within the divergence allowed.
    """

    checks: tuple[Check, ...]
    best: Check
    gains: tuple[dict[str, Any], ...]
    mixtures: tuple[Control, ...]
    mixtures_beyond: float
    together: Effect
    is_kept: bool

    def as_json(self) -> dict[str, Any]:
        """Return every measurement, ready for JSON."""
        vectors = zip(self.best.controls, self.gains, strict=True)
        return {
            "dimension": len(self.best.rows),
            "best_step": self.best.step,
            "checks": [check.as_json() for check in self.checks],
            "vectors": [{**each.as_json(), **gains} for each, gains in vectors],
            "mixtures": [each.as_json() for each in self.mixtures],
            "mixtures_beyond_null": self.mixtures_beyond,
            "together": {
                "bypass": float(self.together.log_odds.mean()),
                "kl": float(self.together.kl.mean()),
            },
            "kept": self.is_kept,
        }


class ConeSearch:
    """Optimises directions on fit prompts, stops on select prompts and holds them to a null."""

    def __init__(
        self,
        scorer: Scorer,
        objective: RdoObjective,
        settings: RdoSettings,
        *,
        max_kl: float,
        seed: int,
    ) -> None:
        """``max_kl`` is the gate on the first-token KL, as in the selection."""
        self._scorer, self._objective, self._settings = scorer, objective, settings
        self._max_kl, self._seed = max_kl, seed
        self._min_induce = least_induce(
            float(scorer.original.log_odds.mean()), float(scorer.harmless_log_odds.mean())
        )

    def improved(self, rows: Float64[Tensor, "rank d_model"]) -> tuple[Check, tuple[Check, ...]]:
        """Move orthonormal ``rows`` by gradient; return the best check and all of them.

        The loss of a step is the mean of those of every row and of ``samples`` random mixtures.
        After each step the rows are made orthonormal again. The best check has the lowest objective
        of its worst row among those that stay within the divergence allowed, or is the start. One
        row must also induce refusal as the published rule asks; of several, the null decides.
        """
        checks = [self._check(0, rows)]
        parameter = nn.Parameter(rows.to(torch.float64).clone())
        optimiser = torch.optim.Adam([parameter], lr=self._settings.rate, betas=BETAS, amsgrad=True)
        objective, steps = self._objective, self._settings.steps
        batches = Batches(
            (objective.refused, objective.answered), self._settings.prompts, self._seed
        )
        generator = torch.Generator().manual_seed(self._seed)
        for step in track(range(1, steps + 1), task="optimise", total=steps, unit="steps"):
            harmful, harmless = batches.draw()
            objective.prepare(harmful, harmless)
            optimiser.zero_grad()
            mixing = torch.eye(len(rows), dtype=torch.float64)
            if len(rows) > 1:
                mixed = mixtures(self._settings.samples, len(rows), generator)
                mixing = torch.cat([mixing, mixed])
            for coefficients in mixing:
                direction = nn.functional.normalize(coefficients @ parameter, dim=0)
                loss = objective.loss(direction, harmful, harmless).total(self._settings)
                (loss / len(mixing)).backward()
            optimiser.step()
            with torch.no_grad():
                parameter.copy_(orthonormalise(parameter))
            if step % self._settings.check_every == 0 or step == steps:
                checks.append(self._check(step, parameter.detach().clone()))
                if self._is_stuck(checks):
                    break
        allowed = [check for check in checks[1:] if self._passes(check)]
        return min([checks[0], *allowed], key=self._value), tuple(checks)

    def grown(self, first: Cone, null: Control) -> tuple[Cone, ...]:
        """Add one dimension at a time to ``first`` while every vector keeps its effect.

        A new vector begins at random, orthogonal to the others, and all of them move. The last cone
        returned is the first that was not kept, unless ``cone`` dimensions were.
        """
        found = [first]
        generator = torch.Generator().manual_seed(self._seed)
        while found[-1].is_kept and len(found) < self._settings.cone:
            rows = found[-1].best.rows
            new = torch.randn(1, rows.shape[1], generator=generator, dtype=torch.float64)
            found.append(self.cone(*self.improved(orthonormalise(torch.cat([rows, new]))), null))
        return tuple(found)

    def cone(self, best: Check, checks: tuple[Check, ...], null: Control) -> Cone:
        """Measure the directions of ``best``, mixtures of them and their joint removal."""
        rows = best.rows
        generator = torch.Generator().manual_seed(self._seed)
        drawn = mixtures(MIXTURES if len(rows) > 1 else 0, len(rows), generator) @ rows
        mixed = tuple(self._control(row) for row in drawn)
        beyond = [each.beyond(null, seed=self._seed) for each in best.controls]
        together = self._scorer.effect(dict.fromkeys(self._scorer.layers, rows))
        within = float(together.kl.mean()) <= self._max_kl
        share = [each.beyond(null, seed=self._seed)[0] for each in mixed]
        return Cone(
            checks,
            best,
            tuple(facts for _, facts in beyond),
            mixed,
            float(np.mean(share)) if share else 1.0,
            together,
            within and all(is_beyond for is_beyond, _ in beyond),
        )

    def _control(self, row: Float64[Tensor, " d_model"]) -> Control:
        return control(self._scorer, row, self._objective.layer, self._objective.length)

    def _check(self, step: int, rows: Float64[Tensor, "rank d_model"]) -> Check:
        return Check(step, rows, tuple(self._control(row) for row in rows))

    def _passes(self, check: Check) -> bool:
        least = self._min_induce if len(check.rows) == 1 else -np.inf
        return all(each.passes(max_kl=self._max_kl, min_induce=least) for each in check.controls)

    def _value(self, check: Check) -> float:
        return check.objective(self._settings.retain)

    def _is_stuck(self, checks: Sequence[Check]) -> bool:
        """Whether the last ``patience`` checks brought nothing better than the best before them."""
        values, patience = [self._value(check) for check in checks], self._settings.patience
        return len(values) > patience and min(values[-patience:]) >= min(values[:-patience])


def mixtures(count: int, rank: int, generator: torch.Generator) -> Float64[Tensor, "count rank"]:
    """Return unit coefficients that are not negative: absolute values of a Gaussian, normalised."""
    drawn = torch.randn(count, rank, generator=generator, dtype=torch.float64).abs()
    return nn.functional.normalize(drawn, dim=1)
