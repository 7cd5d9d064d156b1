"""Directions and strengths tuned by gradient through the model, with its weights left alone."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.batches import Batches
from obliteratus.directions.directions import Directions
from obliteratus.directions.objective import Losses, Objective
from obliteratus.errors import DirectionError
from obliteratus.events import Deviation, track
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.operator.tunable import TunableRemoval
from obliteratus.settings import TuneSettings
from obliteratus.statistics.bootstrap import paired_bootstrap

SCALINGS = 4
"""Trials of a strength that spends the budget."""
NEAR = 0.9
"""The share of the budget above which it counts as spent."""

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
    the point of the weight before; of the edits of :func:`descent` whose first-token KL is within
    ``max_kl`` and the budget the best on ``select`` is that weight's point of the front. The first
    point is used if it is better than ``directions`` as they were given, a further one if it lowers
    refusal on ``select`` beyond noise (paired bootstrap), and the first that does not ends the
    path. Without a point ``directions`` are returned as they were given, with a deviation. What is
    returned is carried out exactly in weights like any other.

    Raises:
        DirectionError: the directions are not one orthogonal basis for all layers.
    """
    check_tunable(directions)
    chosen = _given(directions, select, start, settings.kl_weights[0])
    most = min(max_kl, settings.kl_budget or max_kl)
    checks, front = [chosen], list[Check]()
    for number, weight in enumerate(settings.kl_weights):
        tried = list(descent(start, fit, select, settings, weight, seed=seed + number))
        checks.extend(tried)
        allowed = [check for check in tried if float(check.first_kl.mean()) <= most]
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
        said = [asdict(each) for each in (*directions.deviations, _kept(chosen, most))]
        known = {**directions.provenance, "tuning": facts, "deviations": said}
        return replace(directions, provenance=known)
    start.load_state_dict(chosen.parameters)
    return _moved(directions, start, facts)


def _kept(start: Check, most: float) -> Deviation:
    return Deviation(
        where="distill",
        asked="directions tuned by gradient",
        done=f"those of the selection, of first-token KL {float(start.first_kl.mean()):.3g}",
        reason=f"no edit that was checked is better within a KL of {most:g} on select prompts",
    )


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


def descent(
    removal: TunableRemoval,
    fit: Objective,
    select: Objective,
    settings: TuneSettings,
    weight: float,
    *,
    seed: int,
) -> Iterator[Check]:
    """Move the parameters of ``removal`` by Adam at one weight; yield what is checked on the way.

    Batches are small and the steps of one size, so that ``removal`` circles around what it looks
    for: each check is of the mean of the parameters since the one before, its strengths multiplied
    by what makes the best of ``settings.kl_budget``. It ends where ``settings.patience`` checks
    bring nothing better. ``removal`` is left as the last step made it.
    """
    recent: list[dict[str, Tensor]] = []
    values: list[float] = []
    for step in _descend(removal, fit, settings, weight, seed=seed):
        recent.append(_state(removal))
        if step % settings.check_every and step != settings.steps:
            continue
        now = recent[-1]
        mean = {name: torch.stack([state[name] for state in recent]).mean(0) for name in now}
        removal.load_state_dict(mean)
        check = _spent(select, removal, settings.kl_budget, kl_weight=weight, step=step)
        removal.load_state_dict(now)
        recent.clear()
        yield check
        values.append(check.objective)
        waited = values[-settings.patience :]
        if len(values) > settings.patience and min(waited) >= min(values[: -settings.patience]):
            break


def _spent(
    select: Objective,
    removal: TunableRemoval,
    budget: float | None,
    *,
    kl_weight: float,
    step: int,
) -> Check:
    """Return what ``removal`` does to ``select``, its strengths scaled within a first-token KL.

    The divergence grows about as the square of the strengths, so that a few trials end within a
    tenth below ``budget``. Strengths are increased only where that refuses less. Without a budget
    nothing is scaled.
    """
    given = removal.strengths.detach().clone()
    kept = _under(removal, select, refused=False)
    kl = float(kept.first_kl.mean())
    grows = budget is not None and 0 < kl < NEAR * budget
    for _ in range(SCALINGS):
        if budget is None or kl <= 0 or NEAR * budget <= kl <= budget:
            break
        with torch.no_grad():
            removal.strengths.mul_(((1 + NEAR) / 2 * budget / kl) ** 0.5)
        kept = _under(removal, select, refused=False)
        kl = float(kept.first_kl.mean())
    refused = _under(removal, select, kept=False)
    both = replace(kept, log_odds=refused.log_odds)
    scaled = _check(kl_weight, step, both, _state(removal))
    if budget is None or not grows:
        return scaled
    with torch.no_grad():
        removal.strengths.copy_(given)
    unscaled = _check(kl_weight, step, _under(removal, select), _state(removal))
    within = [check for check in (scaled, unscaled) if float(check.first_kl.mean()) <= budget]
    return min(within, key=lambda check: float(check.refusal.mean()))


def _under(removal: TunableRemoval, select: Objective, **which: bool) -> Losses:
    with torch.no_grad(), edited(removal.model, removal.edits()):
        return select.measured(**which)


def _state(removal: TunableRemoval) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in removal.state_dict().items()}


def _check(
    kl_weight: float, step: int, found: Losses, parameters: Mapping[str, Tensor] = NO_PARAMETERS
) -> Check:
    return Check(
        kl_weight,
        step,
        found.refusal.numpy(),
        found.log_odds.numpy(),
        found.kl.numpy(),
        found.first_kl.numpy(),
        parameters,
    )


def _descend(
    removal: TunableRemoval, fit: Objective, settings: TuneSettings, weight: float, *, seed: int
) -> Iterator[int]:
    """Make the steps; yield their number after each."""
    optimiser = torch.optim.Adam(
        [
            {"params": [removal.strengths], "lr": settings.strength_rate},
            {"params": [removal.directions], "lr": settings.direction_rate},
        ]
    )
    batches = Batches((range(len(fit.refused)), range(len(fit.kept))), settings.prompts, seed)
    steps = range(1, settings.steps + 1)
    for step in track(steps, task=f"tune, KL x {weight:g}", total=settings.steps, unit="steps"):
        refused, kept = batches.draw()
        optimiser.zero_grad()
        with edited(removal.model, removal.edits()):
            fit.losses(refused, kept).total(weight).backward()
        optimiser.step()
        removal.shrink(settings.sparsity * settings.strength_rate)
        yield step


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
    with edited(start.model, edits):
        found = select.measured()
    return _check(weight, 0, found)


def _is_better(point: Check, chosen: Check, *, is_first: bool, seed: int) -> bool:
    """Whether the first point has a lower objective, or a further one refuses less."""
    if is_first:
        return point.objective < chosen.objective
    return paired_bootstrap(chosen.refusal, point.refusal, seed=seed).interval[1] < 0
