"""Refusal direction optimisation (arXiv:2502.17420): one direction by gradient, or a cone."""

from dataclasses import replace
from typing import Any

from obliteratus.directions.cone import Cone, ConeSearch
from obliteratus.directions.control import Control, no_control
from obliteratus.directions.directions import Directions
from obliteratus.directions.rdo_objective import RdoObjective
from obliteratus.directions.score import Scorer
from obliteratus.settings import RdoSettings


def rdo(
    start: Directions,
    scorer: Scorer,
    objective: RdoObjective,
    settings: RdoSettings,
    *,
    max_kl: float,
    null: RdoObjective | None = None,
    seed: int = 0,
) -> Directions:
    """Return ``start`` with its direction optimised by gradient, and grown into a cone if asked.

    See :class:`obliteratus.settings.RdoSettings` for what is lowered. What is used was best on the
    select prompts of ``scorer`` among the directions checked that pass the published gates
    (``max_kl``, and refusal induced), the start included. A cone has the largest dimension at which
    every vector still bypasses and induces refusal beyond the null; its whole span is removed, by
    exact edits like any other. ``null`` is the objective of shuffled labels: the same optimisation
    of one direction is then run on it, and without it the null is the model as it is.

    Published and here: weights 1, 0.2 and 1, targets of 30 tokens, batches of 16, a rate of 0.01,
    the length ‖δ‖, the prompts kept and the mixtures. Different here: the start is the selected
    difference in means and not a random vector, so that no step loses to it; what is ablated is
    every write, embedding included, as the weights will be edited, and not the input of each block
    too; the best check is chosen by softplus(log-odds) + ``retain`` · KL and not by log-odds alone,
    which go on falling where nothing is refused any more.
    """
    search = ConeSearch(scorer, objective, settings, max_kl=max_kl, seed=seed)
    reference, null_facts = no_control(scorer), None
    if null is not None:
        shuffled = ConeSearch(scorer, null, settings, max_kl=max_kl, seed=seed)
        reference, null_facts = _null(shuffled, null, reference)
    first = search.cone(*search.improved(objective.start[None]), reference)
    cones = search.grown(first, reference) if settings.cone > 1 else (first,)
    kept = [each for each in cones if each.is_kept] or [first]
    rows = kept[-1].best.rows
    return replace(
        start,
        basis=dict.fromkeys((layer for layer in start.basis if layer in scorer.layers), rows),
        method="cone" if settings.cone > 1 else "rdo",
        strength=1.0,
        strengths=None,
        provenance={
            **start.provenance,
            "rdo": {
                "extractor": start.method,
                "refused_prompts": len(objective.refused),
                "answered_prompts": len(objective.answered),
                "added_at": objective.layer,
                "length": objective.length,
                "cosine_to_start": float(rows[0] @ objective.start),
                "cones": [each.as_json() for each in cones],
                "null": null_facts,
            },
        },
    )


def _null(
    search: ConeSearch, objective: RdoObjective, nothing: Control
) -> tuple[Control, dict[str, Any]]:
    """Optimise one direction on shuffled labels; return what it controls, and that for JSON."""
    found: Cone = search.cone(*search.improved(objective.start[None]), nothing)
    return found.best.controls[0], found.as_json()
