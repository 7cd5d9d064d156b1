"""The nulls of an edit, through hooks on the untouched original: random, permuted, and nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.events import Deviation, track, without_progress
from obliteratus.measure.divergence import first_token_kl
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.grro import Operator, edit_matrix
from obliteratus.operator.hooks import edited
from obliteratus.probe.forward import automatic_batch_tokens, last_hidden
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.spread import limited
from obliteratus.statistics.bootstrap import bootstrap_mean, paired_bootstrap
from obliteratus.store import Store, content_key
from obliteratus.verify.files import load_part, save_part
from obliteratus.verify.identity import (
    code_fingerprint,
    digest,
    tensor_fingerprint,
    versions,
    weights_fingerprint,
)
from obliteratus.verify.measurement import Part
from obliteratus.verify.report import ControlKind, ControlRow
from obliteratus.verify.sections import prompt_log_odds

CONTROL_PROMPTS = 32  # of each class: a control needs the size of an effect, not its last digit


@dataclass(frozen=True)
class Controls:
    """The measured nulls, with what could not be done as asked."""

    rows: tuple[ControlRow, ...]
    deviations: tuple[Deviation, ...] = ()


@dataclass(frozen=True)
class Effect:
    """What a plan does through hooks: refusal log-odds on harmful, first-token KL on harmless."""

    log_odds: Float64[Tensor, " harmful"] | None
    kl: Float64[Tensor, " harmless"]
    is_bitwise: bool


def measure_controls(
    model: LoadedModel,
    plan: EditPlan,
    prompts: ContrastSet,
    *,
    random: Sequence[EditPlan] = (),
    permuted: Sequence[EditPlan] = (),
    tokens: RefusalTokens | None = None,
    count: int = CONTROL_PROMPTS,
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
    bench = _Bench(model, limited(prompts, count), tokens, system, store)
    before = bench.effect(nothing(plan))
    rows: list[ControlRow] = []
    for name, kind, candidate in track(plans, task="controls", total=len(plans), unit="plans"):
        after = bench.effect(candidate)
        rows.append(_row(name, kind, before, after, seed))
    rows.append(_row("strength 0", "identity", before, before, seed))
    return Controls(tuple(rows), _deviations(plan))


def nothing(plan: EditPlan) -> EditPlan:
    """Return ``plan`` with every strength 0 and no shift: it must change nothing."""
    edits = tuple(
        replace(edit, strengths=torch.zeros_like(edit.strengths), bias_shift=None) for edit in plan
    )
    return replace(plan, edits=edits)


def edited_head(head: Head, plan: EditPlan) -> Head:
    """Return ``head`` as ``plan`` would leave it: itself, unless the plan edits the head."""
    edit = next((each for each in plan if each.site.component == "head"), None)
    if edit is None or not bool(edit.strengths.any()):
        return head
    operator = Operator(edit.write_basis, edit.read_basis, edit.strengths, edit.site.layout)
    return replace(head, weight=edit_matrix(head.weight, operator)[0])


class _Bench:
    """The original on its prompts, run once, and every plan against it."""

    def __init__(
        self,
        model: LoadedModel,
        prompts: ContrastSet,
        tokens: RefusalTokens | None,
        system: str | None,
        store: Store | None,
    ) -> None:
        self._model = model
        self._tokens = tokens
        self._store = store
        self._head: Head = head_of(model)
        self._batch = automatic_batch_tokens(model)  # the same batches for every plan
        self._sides: tuple[Encoded, Encoded] = (
            encode(model, [prompt.text for prompt in prompts.harmful], system=system),
            encode(model, [prompt.text for prompt in prompts.harmless], system=system),
        )
        self._weights = weights_fingerprint(model)
        self._original: tuple[Tensor, Tensor] | None = None

    def effect(self, plan: EditPlan) -> Effect:
        """Return the effect of ``plan``, measured or from the store."""
        if self._store is None:
            return self._measured(plan)
        key = content_key(
            "control",
            weights=self._weights,
            prompts=digest([side.ids for side in self._sides]),
            tokens=None if self._tokens is None else self._tokens.ids,
            plan=list(_plan_parts(plan)),
            device=self._model.device.type,
            versions=versions(),
            code=code_fingerprint(),
        )
        return self._store.cached(key, lambda: self._measured(plan), _save, _load)[0]

    def _measured(self, plan: EditPlan) -> Effect:
        if self._original is None:
            self._original = (self._hidden(0), self._hidden(1))
        with edited(self._model, plan, ignore_norm=True):
            harmful, harmless = self._hidden(0), self._hidden(1)
        before, head = self._original, edited_head(self._head, plan)
        return Effect(
            None if self._tokens is None else prompt_log_odds(harmful, head, self._tokens),
            first_token_kl(before[1], self._head, harmless, head),
            torch.equal(before[0], harmful) and torch.equal(before[1], harmless),
        )

    def _hidden(self, side: int) -> Float[Tensor, "prompt d_model"]:
        with without_progress():
            return last_hidden(
                self._model, self._sides[side], batch_tokens=self._batch, task="controls"
            )


def _row(name: str, kind: ControlKind, before: Effect, after: Effect, seed: int) -> ControlRow:
    change = None
    if before.log_odds is not None and after.log_odds is not None:
        pair = (before.log_odds.numpy(), after.log_odds.numpy())
        change = replace(paired_bootstrap(*pair, seed=seed), null=0.0)
    return ControlRow(
        name=name,
        kind=kind,
        kl=bootstrap_mean(after.kl.numpy(), seed=seed),
        log_odds_change=change,
        is_bitwise=after.is_bitwise if kind == "identity" else None,
    )


def _deviations(plan: EditPlan) -> tuple[Deviation, ...]:
    norms = sorted({edit.norm for edit in plan} - {"none"})
    if not norms:
        return ()
    return (
        Deviation(
            "controls",
            f"edit.norm={norms[0]}",
            "the edit and its controls without it",
            "they are measured through hooks on activations, which cannot keep a matrix's norms",
        ),
    )


def _plan_parts(plan: EditPlan) -> Iterator[list[str]]:
    for edit in plan:
        shift = "" if edit.bias_shift is None else tensor_fingerprint(edit.bias_shift)
        tensors = (edit.write_basis, edit.read_basis, edit.strengths)
        yield [edit.site.name, edit.site.module, *map(tensor_fingerprint, tensors), shift]


def _save(effect: Effect, folder: Path) -> None:
    tensors = {"kl": effect.kl}
    if effect.log_odds is not None:
        tensors["log_odds"] = effect.log_odds
    save_part(Part({"is_bitwise": effect.is_bitwise}, tensors), folder)


def _load(folder: Path) -> Effect:
    part = load_part(folder)
    return Effect(part.tensors.get("log_odds"), part.tensors["kl"], part.facts["is_bitwise"])
