"""One model with everything that its measurement has in common: each part, computed or cached."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch

from obliteratus.directions.directions import Directions
from obliteratus.measure.capability import CapabilityTask
from obliteratus.measure.documents import Document
from obliteratus.measure.early_stop import EarlyStop, early_stop
from obliteratus.measure.generation import Completion
from obliteratus.measure.generators.base import Generator, Task
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Asked, Exchange, Judge, checked
from obliteratus.measure.likelihood import document_nll, token_nll
from obliteratus.measure.states import completion_hidden
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.models.reasoning import Reasoning
from obliteratus.probe.forward import forward_batches, last_hidden
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.prompts.spread import spread_indices
from obliteratus.settings import VerifySettings
from obliteratus.shapes import Layer
from obliteratus.store import Store, content_key
from obliteratus.verify.files import load_part, save_part
from obliteratus.verify.identity import (
    Subject,
    code_fingerprint,
    digest,
    tensor_fingerprint,
    versions,
)
from obliteratus.verify.measurement import (
    Answers,
    Capability,
    FirstTokens,
    Forced,
    Heldout,
    Part,
    Projections,
    Rerun,
    answers,
    rows_of,
)
from obliteratus.verify.thoughts import (
    behind_thoughts,
    determined,
    ruled,
)

RERUN_PROMPTS = 16  # prompts measured twice for the noise floor: enough for a mean, cheap to make


@runtime_checkable
class _Kind(Protocol):
    def as_part(self) -> Part: ...


K = TypeVar("K", bound=_Kind)


@dataclass(frozen=True)
class Reading:
    """What one pass over the test prompts shows at their last tokens."""

    first: FirstTokens
    projections: Projections


@dataclass(frozen=True)
class Meter:
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
        self, prompts: ContrastSet, read: Callable[[], Reading]
    ) -> tuple[Callable[[], Answers], Callable[[], Answers]]:
        """Let the model answer both classes in common batches: full ones are the fastest.

        Harmful prompts are answered only where the judge wants answers, or they are to be kept.
        What is returned are the rulings, harmful ones first, for when they are needed: a judge
        elsewhere goes on ruling until then.
        """
        bad, good, keep = prompts.harmful, prompts.harmless, self.settings.save_completions
        stop = self._early_stop(bad)
        both = cache(lambda: self._generated("answers", (*bad, *good), stop, is_judged=True))
        kept = self.answers(
            "harmless",
            good,
            lambda: both()[len(bad) :],
            lambda: read().first.harmless,
            keep=True,
        )
        dropped = self.answers(
            "harmful",
            bad,
            lambda: both()[: len(bad)],
            lambda: read().first.harmful,
            keep=keep,
            stop=stop,
        )
        return dropped, kept

    def lookalikes(self, prompts: tuple[Prompt, ...]) -> Callable[[], Answers]:
        """Let the model answer safe prompts that look unsafe; answers are judged and dropped."""
        stop = self._early_stop(prompts)
        said = cache(lambda: self._generated("lookalikes", prompts, stop, is_judged=True))
        return self.answers(
            "lookalikes",
            prompts,
            said,
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
    ) -> Callable[[], Answers]:
        """Return what the judge says of ``said``; the answers themselves only where ``keep``.

        A judge of this machine rules now, so that what was generated is not lost if the run is
        killed. One elsewhere is given the answers now, and waited for when they are wanted.
        """
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
        key = {"ids": ids_of(encoded), "who": digest(who), "judge": self.judge.identity}
        key |= {"keep": keep, "stop": None if stop is None else stop.identity}
        key |= self._spoken_key(prompts)
        part = f"{name} answers"
        judged = cache(lambda: self._part(part, compute, Answers.from_part, key))
        if not self.judge.is_elsewhere:
            judged()
        elif not self._is_known(part, key):
            said()
        return judged

    def read(self, prompts: ContrastSet, directions: Directions | None) -> Reading:
        """Run every prompt once and look at its last token, at every layer and behind the norm."""
        texts = [prompt.text for prompt in (*prompts.harmful, *prompts.harmless)]
        encoded = encode(self.model, texts, system=self.system)
        basis = {} if directions is None else leading(directions)
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
        return Reading(
            FirstTokens(states[:count], states[count:]),
            Projections(tuple(basis), along[:, :count], along[:, count:]),
        )

    def first_tokens(self, prompts: ContrastSet, read: Callable[[], Reading]) -> FirstTokens:
        """Return the states at the last token of every prompt, behind the final norm."""
        harmful, harmless = (self._encoded(side) for side in (prompts.harmful, prompts.harmless))
        key = {"harmful": ids_of(harmful), "harmless": ids_of(harmless)}
        return self._part("first tokens", lambda: read().first, FirstTokens.from_part, key)

    def forced(self, prompts: tuple[Prompt, ...], said: tuple[Completion, ...]) -> Forced:
        """Make the model say ``said``, and return how likely it finds it."""
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
            "ids": ids_of(encoded),
            "said": digest([completion.token_ids for completion in said]),
            "some": some,
            "tokens": settings.sequence_tokens,
        }
        return self._part("forced", compute, Forced.from_part, key)

    def heldout(self, documents: tuple[Document, ...]) -> Heldout:
        """Return the likelihood of held-out text."""
        texts = [document.text for document in documents]

        def compute() -> Heldout:
            found = document_nll(self.model, texts, task=self._task("held-out text"))
            ids = tuple(document.id for document in documents)
            genres = tuple(document.genre for document in documents)
            return Heldout(ids, genres, found.nll, found.tokens)

        who = [[document.id, document.genre, document.text] for document in documents]
        return self._part("held-out", compute, Heldout.from_part, {"documents": digest(who)})

    def rerun(self, prompts: tuple[Prompt, ...]) -> Rerun:
        """Run some prompts again in other batches: the noise that is the machine's."""
        some = spread_indices(len(prompts), RERUN_PROMPTS)
        chosen = tuple(prompts[index] for index in some)
        encoded = self._encoded(chosen)

        def compute() -> Rerun:
            task = self._task("noise floor")
            hidden = last_hidden(self.model, encoded, batch_tokens=1, task=task).cpu()
            rows = len(some) if len(some) < len(prompts) else max(1, len(some) // 2)
            return Rerun(some, hidden, self._generated("noise floor", chosen, batch_rows=rows))

        key = {"ids": ids_of(encoded), "some": some, **self._spoken_key(chosen)}
        return self._part("rerun", compute, Rerun.from_part, key)

    def projections(
        self, prompts: ContrastSet, directions: Directions, read: Callable[[], Reading]
    ) -> Projections:
        """Return the projections of all prompts on the leading row of ``directions``."""
        key = {
            "basis": [
                [str(layer), tensor_fingerprint(row)] for layer, row in leading(directions).items()
            ],
            "harmful": ids_of(self._encoded(prompts.harmful)),
            "harmless": ids_of(self._encoded(prompts.harmless)),
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
        is_judged: bool = False,
    ) -> tuple[Completion, ...]:
        """Let the model answer; only answers to the first prompts, those of ``stop``, may stop."""

        def finished(row: int, completion: Completion) -> None:
            self.judge.expect(Exchange(prompts[row].text, completion))

        task = Task(
            self._task(name),
            self.settings.max_new_tokens,
            enough=stop,
            finished=finished if is_judged else None,
            batch_rows=batch_rows,
            thought_tokens=self.settings.thought_tokens,
        )
        return self.generator.answer(self.model, self._spoken(prompts), task)

    def _spoken_key(self, prompts: tuple[Prompt, ...]) -> dict[str, object]:
        """Return what determines the answers to ``prompts``."""
        settings = self.settings
        thought = settings.thought_tokens if self.thinks else 0
        return {
            "spoken": ids_of(self._spoken(prompts)),
            "limit": settings.max_new_tokens,
            "thought": thought,
            "generator": self.generator.identity,
        }

    def capability(self, tasks: tuple[CapabilityTask, ...]) -> Capability | None:
        """Return the scores of every item of ``tasks``, or None where there is no task."""
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

        def save(value: K, folder: Path) -> None:
            save_part(value.as_part(), folder)

        key = self._key(name, determines)
        return self.store.cached(key, compute, save, lambda folder: load(load_part(folder)))[0]

    def _is_known(self, name: str, determines: Mapping[str, object]) -> bool:
        store = self.store
        return store is not None and store.find(self._key(name, determines)) is not None

    def _key(self, name: str, determines: Mapping[str, object]) -> str:
        return content_key(
            "measure",
            part=name,
            weights=self.subject.weights,
            vocabulary=self.subject.vocabulary,
            device=self.subject.device,
            versions=versions(),
            code=code_fingerprint(),
            **determines,
        )

    def _encoded(self, prompts: tuple[Prompt, ...]) -> Encoded:
        return encode(self.model, [prompt.text for prompt in prompts], system=self.system)

    def _spoken(self, prompts: tuple[Prompt, ...]) -> Encoded:
        """Return ``prompts`` as they are answered: where it is to think, the model is let."""
        texts = [prompt.text for prompt in prompts]
        return encode(self.model, texts, system=self.system, thinks=self.thinks)

    def _task(self, what: str) -> str:
        return f"{self.role}: {what}"


def leading(directions: Directions) -> dict[Layer, torch.Tensor]:
    """Return row 0 of every layer that has one, in the order of the stream."""
    layers = sorted(directions.basis, key=lambda layer: -1 if layer == "embedding" else layer)
    return {layer: directions.basis[layer][0] for layer in layers if len(directions.basis[layer])}


def ids_of(encoded: Encoded) -> str:
    """Return a hash of the tokens of prompts, and of how the model is kept from thinking."""
    how = None if encoded.reasoning is None else asdict(encoded.reasoning)
    return digest([encoded.ids, encoded.shared_prefix, how, encoded.thinks])
