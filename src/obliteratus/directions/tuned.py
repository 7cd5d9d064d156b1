"""Directions and strengths tuned by gradient through the model, with its weights left alone."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.objective import Objective
from obliteratus.directions.score import Effect, Scorer
from obliteratus.errors import DirectionError
from obliteratus.events import track
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import SiteStrengths
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.settings import TuneSettings
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Check:
    """The edit after ``step`` steps and what it does to the select prompts."""

    step: int
    basis: Float64[Tensor, "rank d_model"]
    strengths: SiteStrengths
    effect: Effect

    def objective(self, kl_weight: float) -> float:
        """Return softplus(refusal log-odds) + ``kl_weight`` · KL, means over the select prompts."""
        refusal = np.logaddexp(0, self.effect.log_odds).mean()
        return float(refusal + kl_weight * self.effect.kl.mean())

    def as_json(self) -> dict[str, Any]:
        """Return step and mean effects, ready for JSON."""
        return {
            "step": self.step,
            "bypass": float(self.effect.log_odds.mean()),
            "kl": float(self.effect.kl.mean()),
        }


def tuned(
    directions: Directions,
    scorer: Scorer,
    objective: Objective,
    settings: TuneSettings,
    *,
    max_kl: float,
    seed: int = 0,
) -> Directions:
    """Return ``directions`` with a basis and strengths that gradients have improved.

    One basis for all layers is turned, and a strength per layer, component and direction moves, by
    Adam on batches of fit prompts; see :class:`obliteratus.settings.TuneSettings` for what is
    lowered. What is returned was best on the select prompts of ``scorer`` among the edits checked
    whose first-token KL is within ``max_kl``, or the one given, and is carried out exactly in
    weights like any other.

    Raises:
        DirectionError: the directions are not one basis for all layers.
        UnsupportedArchitectureError: the model takes hooks only.
    """
    layers: tuple[Layer, ...] = tuple(layer for layer in directions.basis if layer in scorer.layers)
    rows = directions.basis[layers[0]]
    is_one = all(torch.equal(directions.basis[layer], rows) for layer in layers)
    if not is_one or directions.filters:
        raise DirectionError(
            "tuning begins with one orthogonal basis for all layers, and these directions differ "
            "by layer or have filters. Set distill.selection=published and another extractor."
        )
    removal = TunableRemoval(
        scorer.model, rows, layers, strength=settings.start, post_norm=scorer.post_norm
    )
    checks = [
        _given(directions, scorer, removal),
        *_steps(removal, scorer, objective, settings, seed),
    ]
    allowed = [check for check in checks[1:] if float(check.effect.kl.mean()) <= max_kl]
    best = min([checks[0], *allowed], key=lambda check: check.objective(settings.kl_weight))
    return replace(
        directions,
        basis=dict.fromkeys(layers, best.basis),
        strengths=best.strengths,
        strength=1.0,
        provenance={
            **directions.provenance,
            "tuning": {
                "checks": [check.as_json() for check in checks],
                "best_step": best.step,
                "refused_prompts": len(objective.refused),
                "cosine_to_start": float((best.basis[0] @ rows[0]).abs()),
            },
        },
    )


def _steps(
    removal: TunableRemoval,
    scorer: Scorer,
    objective: Objective,
    settings: TuneSettings,
    seed: int,
) -> list[Check]:
    """Move the parameters of ``removal``; return what was checked on the way."""
    checks: list[Check] = []
    optimiser = torch.optim.Adam(
        [
            {"params": [removal.strengths], "lr": settings.strength_rate},
            {"params": [removal.directions], "lr": settings.direction_rate},
        ]
    )
    batches = _Batches(objective, settings.prompts, seed)
    for step in track(
        range(1, settings.steps + 1), task="tune", total=settings.steps, unit="steps"
    ):
        harmful, harmless = batches.draw()
        objective.prepare(harmless)
        optimiser.zero_grad()
        with edited(scorer.model, removal.edits()):
            objective.loss(harmful, harmless).total(settings.kl_weight).backward()
        optimiser.step()
        if step % settings.check_every == 0 or step == settings.steps:
            checks.append(_check(step, removal, scorer))
            if _is_stuck(checks, settings):
                break
    return checks


class _Batches:
    """Draws prompts of each class without replacement until too few are left, then all again."""

    def __init__(self, objective: Objective, size: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._pools = (np.array(objective.refused), np.arange(objective.n_harmless))
        self._size = size
        self._waiting: list[list[int]] = [[], []]

    def draw(self) -> tuple[list[int], list[int]]:
        """Return the numbers of the next harmful and harmless prompts."""
        drawn: list[list[int]] = []
        for waiting, pool in zip(self._waiting, self._pools, strict=True):
            if len(waiting) < min(self._size, len(pool)):
                waiting[:] = self._generator.permutation(pool).tolist()
            drawn.append(waiting[: self._size])
            del waiting[: self._size]
        return drawn[0], drawn[1]


def _given(directions: Directions, scorer: Scorer, removal: TunableRemoval) -> Check:
    rows = removal.basis().detach()
    ones: SiteStrengths = {
        layer: {
            component: torch.full_like(values.detach(), directions.strength)
            for component, values in parts.items()
        }
        for layer, parts in removal.site_strengths().items()
    }
    return Check(0, rows, ones, scorer.effect(directions.basis, strengths=ones))


def _check(step: int, removal: TunableRemoval, scorer: Scorer) -> Check:
    rows = removal.basis().detach().clone()
    strengths: SiteStrengths = {
        layer: {component: values.detach().clone() for component, values in parts.items()}
        for layer, parts in removal.site_strengths().items()
    }
    bases = dict.fromkeys(removal.layers, rows)
    return Check(step, rows, strengths, scorer.effect(bases, strengths=strengths))


def _is_stuck(checks: list[Check], settings: TuneSettings) -> bool:
    """Whether the last ``patience`` checks brought nothing better than the best before them."""
    values = [check.objective(settings.kl_weight) for check in checks]
    if len(values) <= settings.patience:
        return False
    return min(values[-settings.patience :]) >= min(values[: -settings.patience])
