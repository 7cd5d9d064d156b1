"""Measure one model on the test prompts, part by part, so that a killed run goes on where it died.

Every part is cached under everything that determines it: the weights in memory, the tokens given
to the model, the settings that matter to it, the measuring code and the library versions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.measure.documents import Document, documents
from obliteratus.measure.generation import Completion, generate, generation_deviations
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Asked, Judge
from obliteratus.measure.likelihood import document_nll, token_nll
from obliteratus.measure.states import completion_hidden
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.probe.forward import forward_batches, last_hidden
from obliteratus.prompts.builtin import over_refusal
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.spread import limited, spread_indices
from obliteratus.settings import VerifySettings
from obliteratus.shapes import Layer
from obliteratus.store import Store, content_key
from obliteratus.verify.files import load_part, save_part
from obliteratus.verify.identity import (
    Subject,
    code_fingerprint,
    digest,
    subject_of,
    tensor_fingerprint,
    versions,
)
from obliteratus.verify.measurement import (
    Answers,
    FirstTokens,
    Forced,
    Heldout,
    Measurement,
    Part,
    Projections,
    Rerun,
    answers,
    rows_of,
)

DEFAULTS = VerifySettings()
RERUN_PROMPTS = 16  # prompts measured twice for the noise floor: enough for a mean, cheap to make


@runtime_checkable
class _Kind(Protocol):
    def as_part(self) -> Part: ...


K = TypeVar("K", bound=_Kind)


def measure_model(
    model: LoadedModel,
    prompts: ContrastSet,
    settings: VerifySettings = DEFAULTS,
    *,
    judge: Judge | None = None,
    reference: Measurement | None = None,
    directions: Directions | None = None,
    lookalikes: tuple[Prompt, ...] | None = None,
    texts: tuple[Document, ...] | None = None,
    system: str | None = None,
    store: Store | None = None,
) -> Measurement:
    """Measure ``model`` on the test ``prompts``.

    Without ``reference`` the model is an original: what it says to the harmless prompts is what it
    and every edited model are then made to say. With it the model is compared with that original
    later, and must have its vocabulary. Hidden states stay hidden states: no logits are kept.
    ``directions`` adds their projections per layer. ``lookalikes`` are safe prompts that look
    unsafe (by default ``settings.over_refusal`` of those built in).
    ``judge`` is that of refusal (``keyword``) by default, made on the original for both models.
    ``texts`` are held-out documents (those of ``settings.text`` by default). With a ``store`` each
    part is taken from there if it was measured before, and put there as soon as it is.

    Completions of harmful prompts are judged and dropped, unless ``settings.save_completions``.

    Raises:
        MeasurementError: there is nothing to measure, the vocabularies differ, or logits are NaN.
    """
    chosen = limited(prompts, settings.prompts)
    subject = subject_of(model, head_of(model))
    if reference is not None and reference.subject.vocabulary != subject.vocabulary:
        raise MeasurementError(
            f"{reference.subject.name} and {subject.name} have different vocabularies, so their "
            "predictions cannot be compared. Give a model and an edit of it."
        )
    role = "original" if reference is None else "edited"
    judge = judge or BEHAVIOURS["refusal"].judged_by()
    meter = _Meter(model, subject, settings, judge, system, store, role)
    read = cache(lambda: meter.read(chosen, directions))
    harmful, harmless = meter.both_answers(chosen, read)
    assert harmless.completions is not None
    forced = harmless.completions if reference is None else reference.completions
    safe = built_in_lookalikes(settings.over_refusal) if lookalikes is None else lookalikes
    return Measurement(
        subject=subject,
        prompts=chosen.sha256,
        system=system,
        judge=judge.description,
        settings=settings,
        harmful=harmful,
        harmless=harmless,
        questions=tuple(prompt.text for prompt in chosen.harmless),
        first=meter.first_tokens(chosen, read),
        forced=meter.forced(chosen.harmless, forced),
        heldout=meter.heldout(texts or documents(settings.text, settings.text_documents)),
        lookalikes=meter.lookalikes(safe) if safe else None,
        rerun=meter.rerun(chosen.harmless) if reference is None else None,
        projections=None if directions is None else meter.projections(chosen, directions, read),
        deviations=generation_deviations(model),
    )


def built_in_lookalikes(count: int) -> tuple[Prompt, ...]:
    """Return ``count`` of the built-in safe prompts that look unsafe, spread over their kinds."""
    prompts = over_refusal()
    return tuple(prompts[index] for index in spread_indices(len(prompts), count))


@dataclass(frozen=True)
class _Reading:
    """What one pass over the test prompts shows at their last tokens."""

    first: FirstTokens
    projections: Projections


@dataclass(frozen=True)
class _Meter:
    """A model with what all its parts have in common."""

    model: LoadedModel
    subject: Subject
    settings: VerifySettings
    judge: Judge
    system: str | None
    store: Store | None
    role: str

    def both_answers(
        self, prompts: ContrastSet, read: Callable[[], _Reading]
    ) -> tuple[Answers, Answers]:
        """Let the model answer both classes in common batches: full ones are the fastest.

        Harmful prompts are answered only where the judge wants answers, or they are to be kept.
        """
        bad, good, keep = prompts.harmful, prompts.harmless, self.settings.save_completions
        both = cache(lambda: self._generated("answers", (*bad, *good)))
        kept = self.answers(
            "harmless",
            good,
            lambda: both()[len(bad) :],
            lambda: read().first.harmless,
            keep=True,
        )
        return (
            self.answers(
                "harmful",
                bad,
                lambda: both()[: len(bad)],
                lambda: read().first.harmful,
                keep=keep,
            ),
            kept,
        )

    def lookalikes(self, prompts: tuple[Prompt, ...]) -> Answers:
        return self.answers(
            "lookalikes",
            prompts,
            lambda: self._generated("lookalikes", prompts),
            lambda: last_hidden(
                self.model, self._encoded(prompts), task=self._task("lookalikes")
            ).cpu(),
            keep=False,
        )

    def answers(
        self,
        name: str,
        prompts: tuple[Prompt, ...],
        said: Callable[[], tuple[Completion, ...]],
        states: Callable[[], torch.Tensor],
        *,
        keep: bool,
    ) -> Answers:
        encoded, limit = self._encoded(prompts), self.settings.max_new_tokens

        def compute() -> Answers:
            texts = tuple(prompt.text for prompt in prompts)
            rulings = self.judge.judge(Asked(self.model, texts, encoded, said, states))
            return answers(prompts, rulings, said() if keep else None)

        who = [[prompt.id, prompt.category, prompt.text] for prompt in prompts]
        judge = self.judge.identity
        key = {"ids": _ids(encoded), "who": digest(who), "limit": limit, "judge": judge}
        return self._part(f"{name} answers", compute, Answers.from_part, {**key, "keep": keep})

    def read(self, prompts: ContrastSet, directions: Directions | None) -> _Reading:
        """Run every prompt once and look at its last token, at every layer and behind the norm."""
        texts = [prompt.text for prompt in (*prompts.harmful, *prompts.harmless)]
        encoded = encode(self.model, texts, system=self.system)
        basis = {} if directions is None else _leading(directions)
        final: dict[int, torch.Tensor] = {}
        along = torch.zeros(len(basis), len(texts), dtype=torch.float64)
        with capture(self.model, basis) as stream:
            task = self._task("first tokens")
            for batch, hidden in forward_batches(self.model, encoded, task=task):
                row, last = torch.arange(len(batch.rows)), batch.lengths.cpu() - 1
                final.update(zip(batch.rows, hidden[row, last].cpu(), strict=True))
                for index, (layer, direction) in enumerate(basis.items()):
                    states = stream[layer][row, last].to("cpu", torch.float64)
                    along[index, list(batch.rows)] = states @ direction
        count = len(prompts.harmful)
        states = torch.stack([final[index] for index in range(len(texts))])
        return _Reading(
            FirstTokens(states[:count], states[count:]),
            Projections(tuple(basis), along[:, :count], along[:, count:]),
        )

    def first_tokens(self, prompts: ContrastSet, read: Callable[[], _Reading]) -> FirstTokens:
        harmful, harmless = (self._encoded(side) for side in (prompts.harmful, prompts.harmless))
        key = {"harmful": _ids(harmful), "harmless": _ids(harmless)}
        return self._part("first tokens", lambda: read().first, FirstTokens.from_part, key)

    def forced(self, prompts: tuple[Prompt, ...], said: tuple[Completion, ...]) -> Forced:
        encoded, settings = self._encoded(prompts), self.settings
        some = spread_indices(len(prompts), settings.sequence_prompts)

        def compute() -> Forced:
            states = completion_hidden(
                self.model, encoded, said, task=self._task("the original's answers")
            )
            nll = torch.zeros(len(said), dtype=torch.float64)
            nll.index_add_(0, states.prompt, token_nll(states, head_of(self.model)))
            tokens = torch.bincount(states.prompt, minlength=len(said))
            return Forced(rows_of(states, some, settings.sequence_tokens), nll, tokens)

        key = {
            "ids": _ids(encoded),
            "said": digest([completion.token_ids for completion in said]),
            "some": some,
            "tokens": settings.sequence_tokens,
        }
        return self._part("forced", compute, Forced.from_part, key)

    def heldout(self, documents: tuple[Document, ...]) -> Heldout:
        texts = [document.text for document in documents]

        def compute() -> Heldout:
            found = document_nll(self.model, texts, task=self._task("held-out text"))
            ids = tuple(document.id for document in documents)
            genres = tuple(document.genre for document in documents)
            return Heldout(ids, genres, found.nll, found.tokens)

        who = [[document.id, document.genre, document.text] for document in documents]
        return self._part("held-out", compute, Heldout.from_part, {"documents": digest(who)})

    def rerun(self, prompts: tuple[Prompt, ...]) -> Rerun:
        some = spread_indices(len(prompts), RERUN_PROMPTS)
        encoded, limit = (
            self._encoded(tuple(prompts[i] for i in some)),
            self.settings.max_new_tokens,
        )

        def compute() -> Rerun:
            task = self._task("noise floor")
            hidden = last_hidden(self.model, encoded, batch_tokens=1, task=task).cpu()
            rows = len(some) if len(some) < len(prompts) else max(1, len(some) // 2)
            said = generate(self.model, encoded, max_new_tokens=limit, task=task, batch_rows=rows)
            return Rerun(some, hidden, said)

        key = {"ids": _ids(encoded), "some": some, "limit": limit}
        return self._part("rerun", compute, Rerun.from_part, key)

    def projections(
        self, prompts: ContrastSet, directions: Directions, read: Callable[[], _Reading]
    ) -> Projections:
        key = {
            "basis": [
                [str(layer), tensor_fingerprint(row)] for layer, row in _leading(directions).items()
            ],
            "harmful": _ids(self._encoded(prompts.harmful)),
            "harmless": _ids(self._encoded(prompts.harmless)),
        }
        return self._part("projections", lambda: read().projections, Projections.from_part, key)

    def _generated(self, name: str, prompts: tuple[Prompt, ...]) -> tuple[Completion, ...]:
        limit = self.settings.max_new_tokens
        encoded, task = self._encoded(prompts), self._task(name)
        return generate(self.model, encoded, max_new_tokens=limit, task=task)

    def _part(
        self,
        name: str,
        compute: Callable[[], K],
        load: Callable[[Part], K],
        determines: Mapping[str, object],
    ) -> K:
        if self.store is None:
            return compute()
        key = content_key(
            "measure",
            part=name,
            weights=self.subject.weights,
            vocabulary=self.subject.vocabulary,
            device=self.subject.device,
            versions=versions(),
            code=code_fingerprint(),
            **determines,
        )

        def save(value: K, folder: Path) -> None:
            save_part(value.as_part(), folder)

        return self.store.cached(key, compute, save, lambda folder: load(load_part(folder)))[0]

    def _encoded(self, prompts: tuple[Prompt, ...]) -> Encoded:
        return encode(self.model, [prompt.text for prompt in prompts], system=self.system)

    def _task(self, what: str) -> str:
        return f"{self.role}: {what}"


def _leading(directions: Directions) -> dict[Layer, torch.Tensor]:
    """Return row 0 of every layer that has one, in the order of the stream."""
    layers = sorted(directions.basis, key=lambda layer: -1 if layer == "embedding" else layer)
    return {layer: directions.basis[layer][0] for layer in layers if len(directions.basis[layer])}


def _ids(encoded: Encoded) -> str:
    return digest([encoded.ids, encoded.shared_prefix])
