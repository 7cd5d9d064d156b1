"""One pass of EXCISE: edit the weights in memory and prove on the model in hand what that did."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from obliteratus.directions.directions import Directions
from obliteratus.edits.affine import affine_target
from obliteratus.edits.leaks import prove_edit
from obliteratus.edits.memory import excise
from obliteratus.edits.post_norm import check_post_norm
from obliteratus.edits.receipt import Receipt
from obliteratus.edits.residual import residual_energy, residuals
from obliteratus.edits.routers import router_agreement, router_choices
from obliteratus.events import Deviation
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan


@dataclass(frozen=True)
class Pass:
    """What one pass found and did; ``leaks`` are those that ``allow_leak`` let through."""

    directions: Directions
    plan: EditPlan
    receipt: Receipt
    leaks: tuple[Deviation, ...] = ()


def carry_out(
    model: LoadedModel,
    directions: Directions,
    plan: EditPlan,
    prompts: Sequence[Sequence[int]],
    *,
    allow_leak: bool,
) -> Pass:
    """Edit ``model`` in place as ``plan`` says and look at it on ``prompts`` (token ids).

    The receipt holds the proof, what is left of the directions at every layer, what an edit before
    a post-norm costs and how often routers choose as before.

    Raises:
        LeakError: something is left that the plan removes (unless ``allow_leak``).
        EditError: see ``excise`` and ``check_post_norm``.
    """
    target = affine_target(plan.edits)
    effect = check_post_norm(model, plan, prompts)
    before = residual_energy(model, directions.read, prompts, target=target)
    chosen = router_choices(model, prompts)
    receipt = excise(model, plan)
    proof, leaks = prove_edit(model, plan, prompts, receipt=receipt, allow_leak=allow_leak)
    after = residual_energy(model, directions.read, prompts, target=target)
    again = router_choices(model, prompts)
    receipt = dataclasses.replace(
        receipt,
        proof=proof,
        post_norm=effect,
        residual=residuals(before, after),
        routers=router_agreement(chosen, again) if chosen and again else None,
    )
    return Pass(directions, plan, receipt, tuple(leaks))
