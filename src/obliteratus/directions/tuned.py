"""Directions and strengths tuned by gradient through the model, with its weights left alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.batches import Batches
from obliteratus.directions.directions import Directions
from obliteratus.directions.objective import Objective
from obliteratus.errors import DirectionError
from obliteratus.events import track
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import StreamEdit, WeightEdit
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.settings import TuneSettings
from obliteratus.statistics.bootstrap import paired_bootstrap

NO_PARAMETERS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Check:
    """What the edit after ``step`` steps at ``kl_weight`` does to the select prompts.

    ``parameters`` are those of the :class:`TunableRemoval`, empty for the edit that was given.
    """

    kl_weight: float
    step: int
    refusal: Float64[np.ndarray, " refused"]
    log_odds: Float64[np.ndarray, " refused"]
    kl: Float64[np.ndarray, " kept"]
    first_kl: Float64[np.ndarray, " kept"]
    parameters: Mapping[str, Tensor]

    @property
    def objective(self) -> float:
        """Mean refusal + ``kl_weight`` · mean KL: what is lowered."""
        return float(self.refusal.mean() + self.kl_weight * self.kl.mean())

    def as_json(self) -> dict[str, Any]:
        """Return weight, step and mean effects, ready for JSON; ``kl`` is the first token's."""
        return {
            "kl_weight": self.kl_weight,
            "step": self.step,
            "log_odds": float(self.log_odds.mean()),
            "refusal": float(self.refusal.mean()),
            "kl": float(self.first_kl.mean()),
            "answer_kl": float(self.kl.mean()),
        }


def tuned(
    directions: Directions,
    fit: Objective,
    select: Objective,
    start: TunableRemoval,
    settings: TuneSettings,
    *,
    max_kl: float,
    seed: int = 0,
) -> Directions:
    """Return ``directions`` with the basis and strengths of ``start`` after gradients moved them.

    For each of ``settings.kl_weights`` in turn Adam lowers the losses of ``fit`` in batches, from
    where the weight before it ended; the edit that is best on ``select`` among those checked whose
    first-token KL is within ``max_kl`` is that weight's point of the front. The first point is used
    if it is better than ``directions`` as they were given, a further one if it lowers refusal on
    ``select`` beyond noise (paired bootstrap), and the first that does not ends the path. What is
    returned is carried out exactly in weights like any other.

    Raises:
        DirectionError: the directions are not one orthogonal basis for all layers.
    """
    check_tunable(directions)
    chosen = _given(directions, select, start, settings.kl_weights[0])
    checks, front = [chosen], list[Check]()
    for number, weight in enumerate(settings.kl_weights):
        tried = _descent(start, fit, select, settings, weight, seed + number)
        checks.extend(tried)
        allowed = [check for check in tried if float(check.first_kl.mean()) <= max_kl]
        point = min(allowed, key=lambda check: check.objective, default=None)
        if point is None or not _is_better(point, chosen, is_first=not front, seed=seed):
            break
        front.append(point)
        chosen = point
        start.load_state_dict(point.parameters)
    facts = {
        "checks": [check.as_json() for check in checks],
        "front": [check.as_json() for check in front],
        "best_step": chosen.step,
        "kl_weight": chosen.kl_weight,
        "fit_prompts": [len(fit.refused), len(fit.kept)],
    }
    if not front:
        return replace(directions, provenance={**directions.provenance, "tuning": facts})
    start.load_state_dict(chosen.parameters)
    return _moved(directions, start, facts)


def check_tunable(directions: Directions) -> None:
    """Check that ``directions`` are one orthogonal basis for all layers.

    Raises:
        DirectionError: they differ by layer, or have filters.
    """
    every = list(directions.basis.values())
    if directions.filters or not all(torch.equal(rows, every[0]) for rows in every):
        raise DirectionError(
            "tuning begins with one orthogonal basis for all layers, and these directions differ "
            "by layer or have filters. Set distill.selection=published and another extractor."
        )


def _moved(directions: Directions, removal: TunableRemoval, facts: dict[str, Any]) -> Directions:
    """Return ``directions`` with the basis and strengths of ``removal``, and ``facts`` recorded."""
    rows = removal.basis().detach()
    start = next(iter(directions.basis.values()))[0]
    tuning = {**facts, "cosine_to_start": float(start @ rows[0])}
    return replace(
        directions,
        basis=dict.fromkeys(removal.layers, rows),
        strengths={
            layer: {component: values.detach().clone() for component, values in parts.items()}
            for layer, parts in removal.site_strengths().items()
        },
        strength=1.0,
        provenance={**directions.provenance, "tuning": tuning},
    )


def checked(select: Objective, removal: TunableRemoval, *, kl_weight: float, step: int) -> Check:
    """Return what ``removal`` does to all prompts of ``select`` as it is now."""
    with torch.no_grad():
        edits = removal.edits()
    state = {name: each.clone() for name, each in removal.state_dict().items()}
    return _measured(select, removal.model, edits, kl_weight=kl_weight, step=step, parameters=state)


def descend(
    removal: TunableRemoval, fit: Objective, settings: TuneSettings, weight: float, *, seed: int
) -> Iterator[int]:
    """Move the parameters of ``removal`` by Adam; yield the number of steps made, after each.

    The step sizes fall to 0 over ``settings.steps`` along a half cosine, so that the noise of the
    batches does not decide where it ends.
    """
    optimiser = torch.optim.Adam(
        [
            {"params": [removal.strengths], "lr": settings.strength_rate},
            {"params": [removal.directions], "lr": settings.direction_rate},
        ]
    )
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    batches = Batches((range(len(fit.refused)), range(len(fit.kept))), settings.prompts, seed)
    steps = range(1, settings.steps + 1)
    for step in track(steps, task=f"tune, KL x {weight:g}", total=settings.steps, unit="steps"):
        refused, kept = batches.draw()
        optimiser.zero_grad()
        with edited(removal.model, removal.edits()):
            fit.losses(refused, kept).total(weight).backward()
        optimiser.step()
        removal.shrink(settings.sparsity * float(optimiser.param_groups[0]["lr"]))
        rates.step()
        yield step


def _descent(
    removal: TunableRemoval,
    fit: Objective,
    select: Objective,
    settings: TuneSettings,
    weight: float,
    seed: int,
) -> list[Check]:
    """Return what was checked while ``removal`` was tuned at one weight, until it gains no more."""
    checks: list[Check] = []
    for step in descend(removal, fit, settings, weight, seed=seed):
        if step % settings.check_every and step != settings.steps:
            continue
        checks.append(checked(select, removal, kl_weight=weight, step=step))
        values = [check.objective for check in checks]
        waited = values[-settings.patience :]
        if len(values) > settings.patience and min(waited) >= min(values[: -settings.patience]):
            break
    return checks


def _given(
    directions: Directions, select: Objective, start: TunableRemoval, weight: float
) -> Check:
    """Return what ``directions`` do as they were given."""
    rows = next(iter(directions.basis.values()))
    edits = removal(
        start.model,
        dict.fromkeys(start.layers, rows),
        strength=directions.strength,
        post_norm=start.post_norm,
    )
    return _measured(select, start.model, edits, kl_weight=weight, step=0)


def _measured(
    objective: Objective,
    model: LoadedModel,
    edits: Sequence[WeightEdit | StreamEdit],
    *,
    kl_weight: float,
    step: int,
    parameters: Mapping[str, Tensor] = NO_PARAMETERS,
) -> Check:
    """Return what ``edits`` do to all prompts of ``objective``."""
    with edited(model, edits):
        losses = objective.measured()
    return Check(
        kl_weight,
        step,
        losses.refusal.numpy(),
        losses.log_odds.numpy(),
        losses.kl.numpy(),
        losses.first_kl.numpy(),
        parameters,
    )


def _is_better(point: Check, chosen: Check, *, is_first: bool, seed: int) -> bool:
    """Whether the first point has a lower objective, or a further one refuses less."""
    if is_first:
        return point.objective < chosen.objective
    return paired_bootstrap(chosen.refusal, point.refusal, seed=seed).interval[1] < 0
