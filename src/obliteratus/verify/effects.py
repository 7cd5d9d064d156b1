"""What plans do to a model, through hooks on the untouched original: nothing is edited for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.events import Deviation, without_progress
from obliteratus.measure.divergence import first_token_kl
from obliteratus.measure.documents import Document
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.likelihood import Likelihood, document_nll
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.grro import Operator, edit_matrix
from obliteratus.operator.hooks import edited
from obliteratus.probe.forward import automatic_batch_tokens, last_hidden
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.spread import limited
from obliteratus.statistics.bootstrap import paired_bootstrap
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import Store, content_key
from obliteratus.verify.files import load_part, save_part
from obliteratus.verify.identity import (
    code_fingerprint,
    digest,
    tensor_fingerprint,
    versions,
    vocabulary_fingerprint,
    weights_fingerprint,
)
from obliteratus.verify.measurement import Part
from obliteratus.verify.sections import prompt_log_odds

EFFECT_PROMPTS = 32  # of each class: it takes the size of an effect, not its last digit


@dataclass(frozen=True)
class Effect:
    """What a plan does through hooks: refusal log-odds on harmful, first-token KL on harmless."""

    log_odds: Float64[Tensor, " harmful"] | None
    kl: Float64[Tensor, " harmless"]
    is_bitwise: bool


class EffectBench:
    """The original on at most ``count`` prompts of each class, run once, and plans against it.

    Without ``tokens`` there are no log-odds. With a ``store``, what was measured before is taken
    from there.

    Raises:
        MeasurementError: there are no prompts of one class.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: ContrastSet,
        *,
        tokens: RefusalTokens | None = None,
        count: int = EFFECT_PROMPTS,
        system: str | None = None,
        store: Store | None = None,
    ) -> None:
        chosen = limited(prompts, count)
        self._model = model
        self._tokens = tokens
        self._store = store
        self._head: Head = head_of(model)
        self._batch = automatic_batch_tokens(model)  # the same batches for every plan
        self._sides: tuple[Encoded, Encoded] = (
            encode(model, [prompt.text for prompt in chosen.harmful], system=system),
            encode(model, [prompt.text for prompt in chosen.harmless], system=system),
        )
        self._weights = weights_fingerprint(model)
        self._original: tuple[Tensor, Tensor] | None = None

    def effect(self, plan: EditPlan) -> Effect:
        """Return the effect of ``plan``, measured or from the store.

        Raises:
            MeasurementError: logits are NaN.
            EditError: hooks cannot carry the plan out.
        """
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

    def likelihood(self, plan: EditPlan, documents: Sequence[Document]) -> Likelihood:
        """Return how probable ``documents`` are under ``plan``, measured or from the store.

        Raises:
            MeasurementError: there are no documents, or logits are NaN.
            EditError: hooks cannot carry the plan out.
        """
        texts = [document.text for document in documents]
        if self._store is None:
            return self._read(plan, texts)
        key = content_key(
            "control documents",
            weights=self._weights,
            vocabulary=vocabulary_fingerprint(self._model),
            documents=digest(texts),
            plan=list(_plan_parts(plan)),
            device=self._model.device.type,
            versions=versions(),
            code=code_fingerprint(),
        )
        return self._store.cached(
            key, lambda: self._read(plan, texts), _save_likelihood, _load_likelihood
        )[0]

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

    def _read(self, plan: EditPlan, texts: Sequence[str]) -> Likelihood:
        head = edited_head(self._head, plan)
        with without_progress(), edited(self._model, plan, ignore_norm=True):
            return document_nll(self._model, texts, task="effects", head=head)

    def _hidden(self, side: int) -> Float[Tensor, "prompt d_model"]:
        with without_progress():
            return last_hidden(
                self._model, self._sides[side], batch_tokens=self._batch, task="effects"
            )


def edited_head(head: Head, plan: EditPlan) -> Head:
    """Return ``head`` as ``plan`` would leave it: itself, unless the plan edits the head."""
    edit = next((each for each in plan if each.site.component == "head"), None)
    if edit is None or not bool(edit.strengths.any()):
        return head
    operator = Operator(edit.write_basis, edit.read_basis, edit.strengths, edit.site.layout)
    return replace(head, weight=edit_matrix(head.weight, operator)[0])


def log_odds_change(before: Effect, after: Effect, *, seed: int) -> Estimate | None:
    """Return the mean change of the refusal log-odds, paired by prompt; None without tokens."""
    if before.log_odds is None or after.log_odds is None:
        return None
    pair = (before.log_odds.numpy(), after.log_odds.numpy())
    return replace(paired_bootstrap(*pair, seed=seed), null=0.0)


def norms_ignored(plan: EditPlan, *, where: str, done: str) -> tuple[Deviation, ...]:
    """Return the deviation that effects of ``plan`` are without the norms that it keeps, if any."""
    norms = sorted({edit.norm for edit in plan} - {"none"})
    if not norms:
        return ()
    why = "they are measured through hooks on activations, which cannot keep a matrix's norms"
    return (Deviation(where, f"edit.norm={norms[0]}", done, why),)


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


def _save_likelihood(found: Likelihood, folder: Path) -> None:
    save_part(Part({}, {"nll": found.nll, "tokens": found.tokens}), folder)


def _load_likelihood(folder: Path) -> Likelihood:
    part = load_part(folder)
    return Likelihood(part.tensors["nll"], part.tensors["tokens"])
