"""The nulls of an edit, through hooks on the untouched original: random, permuted, and nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from obliteratus.events import Deviation, track
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.store import Store
from obliteratus.verify.effects import (
    EFFECT_PROMPTS,
    Effect,
    EffectBench,
    log_odds_change,
    norms_ignored,
)
from obliteratus.verify.records.effects import ControlKind, ControlRow


@dataclass(frozen=True)
class Controls:
    """The measured nulls, with what could not be done as asked."""

    rows: tuple[ControlRow, ...]
    deviations: tuple[Deviation, ...] = ()


def measure_controls(
    model: LoadedModel,
    plan: EditPlan,
    prompts: ContrastSet,
    *,
    random: Sequence[EditPlan] = (),
    permuted: Sequence[EditPlan] = (),
    tokens: RefusalTokens | None = None,
    count: int = EFFECT_PROMPTS,
    system: str | None = None,
    seed: int = 0,
    store: Store | None = None,
) -> Controls:
    """Measure ``plan`` and its nulls on ``model``, which must be the untouched original.

    ``random`` are the same edit along random directions of matched energy, ``permuted`` along
    directions extracted from permuted labels; strength 0 must leave every final hidden state as it
    is, bit for bit. At most ``count`` prompts of each class are used, spread over the categories.
    Without ``tokens`` there are no log-odds. Hooks cannot keep norms: where a plan does, that is a
    deviation. With a ``store``, effects that were measured before are taken from there.

    Raises:
        MeasurementError: there are no prompts, or logits are NaN.
        EditError: a plan cannot be carried out by hooks.
    """
    plans: list[tuple[str, ControlKind, EditPlan]] = [("the edit", "edit", plan)]
    plans.extend((f"random direction {i}", "random", p) for i, p in enumerate(random, 1))
    plans.extend((f"permuted labels {i}", "permuted", p) for i, p in enumerate(permuted, 1))
    bench = EffectBench(model, prompts, tokens=tokens, count=count, system=system, store=store)
    before = bench.effect(plan.scaled(0.0))
    rows: list[ControlRow] = []
    for name, kind, candidate in track(plans, task="controls", total=len(plans), unit="plans"):
        after = bench.effect(candidate)
        rows.append(_row(name, kind, before, after, seed))
    rows.append(_row("strength 0", "identity", before, before, seed))
    done = "the edit and its controls without it"
    return Controls(tuple(rows), norms_ignored(plan, where="controls", done=done))


def _row(name: str, kind: ControlKind, before: Effect, after: Effect, seed: int) -> ControlRow:
    return ControlRow(
        name=name,
        kind=kind,
        kl=bootstrap_mean(after.kl.numpy(), seed=seed),
        log_odds_change=log_odds_change(before, after, seed=seed),
        is_bitwise=after.is_bitwise if kind == "identity" else None,
    )
