"""Measure one model on the test prompts, part by part, so that a killed run goes on where it died.

Every part is cached under everything that determines it: the weights in memory, the tokens given
to the model, the settings that matter to it, the measuring code and the library versions.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError, UsageError
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.measure.capability import CapabilityTask
from obliteratus.measure.capability_tasks import capability_tasks
from obliteratus.measure.documents import Document, documents
from obliteratus.measure.early_stop import EarlyStop, early_stop
from obliteratus.measure.generation import Completion
from obliteratus.measure.generators.base import GENERATORS, Generator, Task
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Asked, Judge, checked
from obliteratus.measure.likelihood import document_nll, token_nll
from obliteratus.measure.states import completion_hidden
from obliteratus.models.chat import Encoded, encode, reasoning_of
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.models.reasoning import Reasoning
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
    Capability,
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
from obliteratus.verify.thoughts import (
    behind_thoughts,
    determined,
    in_words,
    ruled,
    thought_deviations,
)

DEFAULTS = VerifySettings()
FEWEST = 2  # of each class: one prompt has no variance
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
    They and those of ``lookalikes`` may be cut short (``settings.early_stop``), harmless ones not.

    With ``settings.thoughts`` "apart" a model that thinks does so before its answers, and the
    judge rules on both. What is read at a prompt's last token is read where its thoughts are
    skipped all the same: there the first token is that of an answer, whatever would be thought.

    Raises:
        UsageError: answers are to be cut short by a judge that rules on whole ones only, or are to
            be given by a generator that is not installed or cannot run the model, thoughts are to
            be scored apart by a judge that reads no answers, or there is no such task.
        MeasurementError: there is nothing to measure, the vocabularies differ, logits are NaN, no
            thought ends within its limit, or a task cannot be given to this model.
    """
    chosen = limited(prompts, settings.prompts)
    _check_size(chosen)
    if directions is not None:
        _check_directions(model, directions)
    subject = subject_of(model, head_of(model))
    if reference is not None and reference.subject.vocabulary != subject.vocabulary:
        raise MeasurementError(
            f"{reference.subject.name} and {subject.name} have different vocabularies, so their "
            "predictions cannot be compared. Give a model and an edit of it."
        )
    role = "original" if reference is None else "edited"
    judge = judge or BEHAVIOURS["refusal"].judged_by()
    if settings.thoughts == "apart" and not judge.reads_answers:
        raise UsageError(
            f"the judge '{judge.name}' reads no answers, so there is no thought to score apart. "
            "Set verify.thoughts=skip, or another verify.judge.name."
        )
    reasoning = reasoning_of(model, system=system)
    generator = GENERATORS[settings.generator]()
    meter = _Meter(model, subject, settings, judge, generator, system, store, role, reasoning)
    read = cache(lambda: meter.read(chosen, directions))
    harmful, harmless = meter.both_answers(chosen, read)
    assert harmless.completions is not None
    forced = harmless.completions if reference is None else reference.completions
    if lookalikes is None:
        lookalikes = built_in_lookalikes(settings.over_refusal)
    safe = meter.lookalikes(lookalikes) if lookalikes else None
    said = [harmful, harmless, *([] if safe is None else [safe])]
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
        heldout=meter.heldout(
            documents(settings.text, settings.text_documents) if texts is None else texts
        ),
        lookalikes=safe,
        rerun=meter.rerun(chosen.harmless) if reference is None else None,
        projections=None if directions is None else meter.projections(chosen, directions, read),
        reasoning=in_words(reasoning, settings),
        capability=meter.capability(capability_tasks(settings)),
        deviations=(
            *generator.deviations(model),
            *thought_deviations(subject.name, reasoning, settings, said),
        ),
    )


def _check_size(prompts: ContrastSet) -> None:
    """Refuse what would have no interval before anything takes long."""
    fewest = min(len(prompts.harmful), len(prompts.harmless))
    if fewest < FEWEST:
        raise MeasurementError(
            f"{fewest} prompt of a class has no interval: an interval needs at least two "
            "independent prompts. Give more, or set verify.prompts to 0 for all of them."
        )


def _check_directions(model: LoadedModel, directions: Directions) -> None:
    """Refuse directions that the stream of ``model`` has no place for."""
    basis, anatomy = _leading(directions), model.anatomy
    for layer, direction in basis.items():
        is_there = layer == "embedding" or layer < anatomy.n_layers
        if not is_there or len(direction) != anatomy.d_model:
            raise MeasurementError(
                f"the direction of layer {layer} has {len(direction)} dimensions, and "
                f"{model.source.asked} has {anatomy.n_layers} layers of {anatomy.d_model}: it "
                "cannot be projected on it. Leave the directions out to compare the two models."
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
    generator: Generator
    system: str | None
    store: Store | None
    role: str
    reasoning: Reasoning | None

    @property
    def thinks(self) -> bool:
        """Whether the model thinks before the answers that are measured."""
        return self.settings.thoughts == "apart" and self.reasoning is not None

    def both_answers(
        self, prompts: ContrastSet, read: Callable[[], _Reading]
    ) -> tuple[Answers, Answers]:
        """Let the model answer both classes in common batches: full ones are the fastest.

        Harmful prompts are answered only where the judge wants answers, or they are to be kept.
        """
        bad, good, keep = prompts.harmful, prompts.harmless, self.settings.save_completions
        stop = self._early_stop(bad)
        both = cache(lambda: self._generated("answers", (*bad, *good), stop))
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
                stop=stop,
            ),
            kept,
        )

    def lookalikes(self, prompts: tuple[Prompt, ...]) -> Answers:
        stop = self._early_stop(prompts)
        return self.answers(
            "lookalikes",
            prompts,
            lambda: self._generated("lookalikes", prompts, stop),
            lambda: last_hidden(
                self.model, self._encoded(prompts), task=self._task("lookalikes")
            ).cpu(),
            keep=False,
            stop=stop,
        )

    def answers(
        self,
        name: str,
        prompts: tuple[Prompt, ...],
        said: Callable[[], tuple[Completion, ...]],
        states: Callable[[], torch.Tensor],
        *,
        keep: bool,
        stop: EarlyStop | None = None,
    ) -> Answers:
        encoded = self._encoded(prompts)

        def compute() -> Answers:
            texts = tuple(prompt.text for prompt in prompts)
            asked = Asked(self.model, texts, encoded, said, states)
            rulings = checked(self.judge, self.judge.judge(asked), len(prompts))
            if not (keep or self.judge.reads_answers):
                return answers(prompts, rulings, None)
            thoughts = ruled(self.judge, texts, said())
            if self.judge.reads_answers:
                rulings = determined(rulings, said(), self.settings)
            stopped = None if stop is None else stop.tally(self.model, said(), rulings)
            return answers(prompts, rulings, said() if keep else None, stopped, thoughts)

        who = [[prompt.id, prompt.category, prompt.text] for prompt in prompts]
        key = {"ids": _ids(encoded), "who": digest(who), "judge": self.judge.identity}
        key |= {"keep": keep, "stop": None if stop is None else stop.identity}
        key |= self._spoken_key(prompts)
        return self._part(f"{name} answers", compute, Answers.from_part, key)

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
        settings = self.settings
        encoded, whole = behind_thoughts(self._spoken(prompts), said)
        some = spread_indices(len(whole), settings.sequence_prompts)

        def compute() -> Forced:
            task = self._task("the original's answers")
            states = completion_hidden(self.model, encoded, whole, task=task)
            nll = torch.zeros(len(whole), dtype=torch.float64)
            nll.index_add_(0, states.prompt, token_nll(states, head_of(self.model)))
            tokens = torch.bincount(states.prompt, minlength=len(whole))
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
        chosen = tuple(prompts[index] for index in some)
        encoded = self._encoded(chosen)

        def compute() -> Rerun:
            task = self._task("noise floor")
            hidden = last_hidden(self.model, encoded, batch_tokens=1, task=task).cpu()
            rows = len(some) if len(some) < len(prompts) else max(1, len(some) // 2)
            return Rerun(some, hidden, self._generated("noise floor", chosen, batch_rows=rows))

        key = {"ids": _ids(encoded), "some": some, **self._spoken_key(chosen)}
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

    def _early_stop(self, prompts: tuple[Prompt, ...]) -> EarlyStop | None:
        texts = tuple(prompt.text for prompt in prompts)
        kind, limit = self.settings.early_stop, self.settings.max_new_tokens
        return early_stop(kind, self.judge, texts, limit)

    def _generated(
        self,
        name: str,
        prompts: tuple[Prompt, ...],
        stop: EarlyStop | None = None,
        *,
        batch_rows: int = 0,
    ) -> tuple[Completion, ...]:
        """Let the model answer; only answers to the first prompts, those of ``stop``, may stop."""
        task = Task(
            self._task(name),
            self.settings.max_new_tokens,
            enough=stop,
            batch_rows=batch_rows,
            thought_tokens=self.settings.thought_tokens,
        )
        return self.generator.answer(self.model, self._spoken(prompts), task)

    def _spoken_key(self, prompts: tuple[Prompt, ...]) -> dict[str, object]:
        """Return what determines the answers to ``prompts``."""
        settings = self.settings
        thought = settings.thought_tokens if self.thinks else 0
        return {
            "spoken": _ids(self._spoken(prompts)),
            "limit": settings.max_new_tokens,
            "thought": thought,
            "generator": self.generator.identity,
        }

    def capability(self, tasks: tuple[CapabilityTask, ...]) -> Capability | None:
        parts = [self._scored(task) for task in tasks]
        return Capability(tuple(one for part in parts for one in part.tasks)) if parts else None

    def _scored(self, task: CapabilityTask) -> Capability:
        def compute() -> Capability:
            return Capability(
                (task.score(self.model, self.system, progress=self._task(task.name)),)
            )

        key = {"items": digest(task.identity(self.model, self.system))}
        return self._part(f"capability {task.name}", compute, Capability.from_part, key)

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

    def _spoken(self, prompts: tuple[Prompt, ...]) -> Encoded:
        """Return ``prompts`` as they are answered: where it is to think, the model is let."""
        texts = [prompt.text for prompt in prompts]
        return encode(self.model, texts, system=self.system, thinks=self.thinks)

    def _task(self, what: str) -> str:
        return f"{self.role}: {what}"


def _leading(directions: Directions) -> dict[Layer, torch.Tensor]:
    """Return row 0 of every layer that has one, in the order of the stream."""
    layers = sorted(directions.basis, key=lambda layer: -1 if layer == "embedding" else layer)
    return {layer: directions.basis[layer][0] for layer in layers if len(directions.basis[layer])}


def _ids(encoded: Encoded) -> str:
    how = None if encoded.reasoning is None else asdict(encoded.reasoning)
    return digest([encoded.ids, encoded.shared_prefix, how, encoded.thinks])
