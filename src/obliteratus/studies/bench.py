"""What a study measures of a model, once as it is and then in every changed state of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.events import Deviation, without_progress
from obliteratus.measure.behaviour import Behaviour
from obliteratus.measure.built_in_tasks import BUILT_IN
from obliteratus.measure.capability import ItemScores
from obliteratus.measure.coherence import embed
from obliteratus.measure.divergence import first_token_kl
from obliteratus.measure.documents import Document, documents
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.judges.base import Asked, checked
from obliteratus.measure.judges.base import Bench as JudgeBench
from obliteratus.measure.likelihood import document_nll
from obliteratus.measure.outcomes import Outcome
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.shares import Lineup
from obliteratus.probe.forward import automatic_batch_tokens
from obliteratus.prompts.contrast import ContrastSet, Prompt, Splits
from obliteratus.prompts.rewrites import widened
from obliteratus.settings import RunSettings
from obliteratus.store import Store, content_key
from obliteratus.studies.questions import TASK, Questions
from obliteratus.studies.rows import Numbers, Outcomes, changed_rows
from obliteratus.studies.schema import Metric
from obliteratus.verify.files import load_part, save_part
from obliteratus.verify.identity import (
    code_fingerprint,
    digest,
    versions,
    vocabulary_fingerprint,
    weights_fingerprint,
)
from obliteratus.verify.measure import lookalikes_of
from obliteratus.verify.measurement import Capability, Part
from obliteratus.verify.report import Row
from obliteratus.verify.sections import prompt_log_odds
from obliteratus.verify.verify import calibrated


@dataclass(frozen=True)
class Reading:
    """What one state of a model did, prompt by prompt. What was not asked for is None.

    ``outcomes`` are the judge's, by class of prompts; ``harmless`` are final-norm outputs at the
    last tokens, from which the divergence is computed, and ``meanings`` unit-length embeddings of
    the answers to harmless prompts, which are dropped.
    """

    log_odds_harmful: Float64[Tensor, " prompt"] | None = None
    log_odds_harmless: Float64[Tensor, " prompt"] | None = None
    harmless: Float[Tensor, "prompt d_model"] | None = None
    nll: Float64[Tensor, " document"] | None = None
    tokens: Int64[Tensor, " document"] | None = None
    meanings: Float[Tensor, "prompt dimension"] | None = None
    outcomes: dict[str, tuple[Outcome, ...]] | None = None
    questions: ItemScores | None = None

    def as_part(self) -> Part:
        """Return this as facts and tensors."""
        names = (
            *("log_odds_harmful", "log_odds_harmless", "harmless"),
            *("nll", "tokens", "meanings"),
        )
        tensors = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        questions = None if self.questions is None else asdict(self.questions)
        return Part({"outcomes": self.outcomes, "questions": questions}, tensors)

    @classmethod
    def from_part(cls, part: Part) -> "Reading":
        """Make a reading of what :meth:`as_part` returned, or of its JSON."""
        said, asked = part.facts["outcomes"], part.facts["questions"]
        if asked is not None:
            asked = Capability.from_part(Part({"tasks": [asked]}, {})).tasks[0]
        outcomes = None if said is None else {k: tuple(v) for k, v in said.items()}
        return cls(outcomes=outcomes, questions=asked, **part.tensors)


class StudyBench:
    """A model as it is, measured for one behaviour, and its changed states against it.

    Raises:
        MeasurementError: there are no prompts of a class, or a metric has no meaning here.
        PromptError: more prompts are asked for than rewrites can give.
    """

    def __init__(
        self,
        model: LoadedModel,
        splits: Splits,
        behaviour: Behaviour,
        settings: RunSettings,
        metrics: Sequence[Metric],
        prompts: int,
        store: Store,
        *,
        head: Head,
    ) -> None:
        """``prompts`` of each class are taken from the test split, with rewrites where need be.

        ``head`` is the model's own, in memory of its own: an edit changes the weights in place.
        """
        self.model = model
        self.splits = splits
        self.settings = settings
        self.store = store
        self._behaviour = behaviour
        self._metrics = tuple(metrics)
        self.widened = widened(splits.test, prompts)
        self._prompts: ContrastSet = self.widened.contrast
        self._system = settings.prompts.system
        self._head = head
        self._batch = automatic_batch_tokens(model)  # the same batches for every state
        self._texts: tuple[Document, ...] = documents(
            settings.verify.text, settings.verify.text_documents
        )
        self._lookalikes: tuple[Prompt, ...] = (
            lookalikes_of(behaviour, settings.verify.over_refusal)
            if "over_refusal" in metrics
            else ()
        )
        self.tokens, left_out = calibrated(model, splits.fit, behaviour, system=self._system)
        if "over_refusal" in metrics and not self._lookalikes:
            reason = f"there are none for {behaviour.words.noun}, or verify.over_refusal is 0"
            left_out = (*left_out, Deviation("study", "over_refusal", "left out", reason))
        self.deviations: tuple[Deviation, ...] = left_out
        self._judge = behaviour.judged_by(JudgeBench(settings.verify.judge, self.tokens, store))

    @cached_property
    def original(self) -> Reading:
        """The model as it is, measured now or in the cache of all workers."""
        key = content_key(
            "study",
            weights=weights_fingerprint(self.model),
            vocabulary=vocabulary_fingerprint(self.model),
            template=self.model.chat_template_sha256,
            device=self.model.device.type,
            batch=self._batch,
            prompts=self._prompts.sha256,
            system=self._system,
            lookalikes=digest([each.text for each in self._lookalikes]),
            documents=digest([each.text for each in self._texts]),
            tokens=None if self.tokens is None else list(self.tokens.ids),
            judge=self._judge.identity,
            metrics=sorted(self._metrics),
            new_tokens=self.settings.verify.max_new_tokens,
            items=self.settings.verify.capability_items,
            versions=versions(),
            code=code_fingerprint(),
        )
        locks = self.store.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / key):  # the other workers wait for the one that measures
            return self.store.cached(
                key,
                self.read,
                lambda reading, folder: save_part(reading.as_part(), folder),
                lambda folder: Reading.from_part(load_part(folder)),
            )[0]

    def read(self) -> Reading:
        """Measure the model in the state in which it is, under whatever hooks are active.

        Raises:
            MeasurementError: logits are NaN, or there is nothing to measure.
        """
        with without_progress():
            return self._read(None)[0]

    def read_all(self, lineup: Lineup) -> tuple[Reading, ...]:
        """Measure the model under hooks that follow ``lineup``, all of them in the same batches.

        One Progress is emitted for each batch: this takes as long as many calls of :meth:`read`.

        Raises:
            MeasurementError: see :meth:`read`.
        """
        return self._read(lineup)

    def rows(self, after: Reading) -> tuple[Row, ...]:
        """Return what ``after`` changed, metric by metric, paired by prompt or document.

        Its head must be the model's as it is now: :meth:`read` and this are called in one state.
        """
        before, seed = self.original, self.settings.seed
        numbers: list[Numbers] = []
        words = self._behaviour.words
        for name in ("log_odds_harmful", "log_odds_harmless"):
            one, two = getattr(before, name), getattr(after, name)
            if name in self._metrics and one is not None and two is not None:
                label = f"{words.noun} log-odds, " + (
                    words.provoking if name.endswith("harmful") else words.neutral
                )
                numbers.append(Numbers(name, label, one.numpy(), two.numpy()))
        kl = None
        if before.harmless is not None and after.harmless is not None:
            kl = first_token_kl(before.harmless, self._head, after.harmless, head_of(self.model))
        outcomes = [
            Outcomes(name, label, before.outcomes[side], after.outcomes[side], outcome)
            for name, label, side, outcome in self._shares()
            if before.outcomes is not None and after.outcomes is not None
        ]
        alike = None
        if before.meanings is not None and after.meanings is not None:
            alike = (before.meanings.double() * after.meanings.double()).sum(dim=-1).numpy()
        return changed_rows(
            numbers=numbers,
            outcomes=outcomes,
            similarity=alike,
            kl=None if kl is None else kl.numpy(),
            likelihood=None
            if before.nll is None or after.nll is None or before.tokens is None
            else (before.nll, after.nll, before.tokens),
            questions=None
            if before.questions is None or after.questions is None
            else (before.questions, after.questions),
            origins=np.array(self.widened.origins) if self.widened.is_rewritten else None,
            seed=seed,
        )

    def _shares(self) -> list[tuple[Metric, str, str, Outcome]]:
        words = self._behaviour.words
        every: list[tuple[Metric, str, str, Outcome]] = [
            ("refusal_harmful", f"{words.shows} {words.asked}", "harmful", "refusal"),
            ("refusal_harmless", f"{words.shows} {words.partners}", "harmless", "refusal"),
            ("over_refusal", f"{words.shows} safe look-alikes", "lookalikes", "refusal"),
            ("degenerate_harmful", f"degenerate, {words.provoking}", "harmful", "degenerate"),
        ]
        asked = [each for each in every if each[0] in self._metrics]
        return [each for each in asked if each[2] != "lookalikes" or self._lookalikes]

    @torch.no_grad()
    def _read(self, lineup: Lineup | None) -> tuple[Reading, ...]:
        found: list[dict[str, Any]] = [{} for _ in range(1 if lineup is None else len(lineup))]
        self._ask(found, lineup)
        for number in range(len(found)):  # long texts fill a batch by themselves
            if lineup is not None:
                lineup.turn_all(number)
            found[number] |= self._documents_and_questions()
        return tuple(Reading(**each) for each in found)

    def _ask(self, found: list[dict[str, Any]], lineup: Lineup | None) -> None:
        """Put the prompts to every variant, and add to its ``found`` what it made of them."""
        head, wanted = head_of(self.model), set(self._metrics)
        classes = {
            "harmful": self._prompts.harmful,
            "harmless": self._prompts.harmless,
            "lookalikes": self._lookalikes,
        }
        ruled = {side for _, _, side, _ in self._shares()}
        speaking = (ruled if self._judge.reads_answers else set[str]()) | (
            {"harmless"} if "coherence" in wanted else set[str]()
        )
        there = [side for side, prompts in classes.items() if prompts]
        answering = [side for side in there if side in speaking]
        # Classes that are answered share their batches, which finished rows then leave less empty.
        groups = [answering, *([side] for side in there if side not in speaking)]
        for sides in filter(None, groups):
            questions = Questions(
                self.model,
                [prompt for side in sides for prompt in classes[side]],
                self._system,
                self._batch,
                self.settings.verify.max_new_tokens,
                lineup,
            )
            if sides is answering:
                _ = questions.answers  # first: the states come with them
            start = 0
            for side in sides:
                part = slice(start, start + len(classes[side]))
                start = part.stop
                if f"log_odds_{side}" in wanted and self.tokens is not None:
                    for each, hidden in zip(found, questions.states, strict=True):
                        odds = prompt_log_odds(hidden[part], head, self.tokens)
                        each[f"log_odds_{side}"] = odds
                if side == "harmless" and "kl_first" in wanted:
                    for each, hidden in zip(found, questions.states, strict=True):
                        each["harmless"] = hidden[part].cpu()
                if side == "harmless" and "coherence" in wanted:
                    for each, said in zip(found, questions.answers, strict=True):
                        each["meanings"] = embed([answer.text for answer in said[part]])
                if side in ruled:
                    for number, each in enumerate(found):
                        rulings = self._ruled(questions, number, part)
                        each.setdefault("outcomes", {})[side] = rulings

    def _documents_and_questions(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "perplexity_heldout" in self._metrics:
            texts = [document.text for document in self._texts]
            read = document_nll(self.model, texts, task=TASK)
            found |= {"nll": read.nll, "tokens": read.tokens}
        if "multiple_choice" in self._metrics:
            task = BUILT_IN["multiple_choice"](self.settings.verify.capability_items)
            found["questions"] = task.score(self.model, self._system, progress=TASK)
        return found

    def _ruled(self, questions: Questions, number: int, part: slice) -> tuple[Outcome, ...]:
        """Let the judge rule on what a variant did with some prompts; its answers are dropped."""
        texts = tuple(prompt.text for prompt in questions.prompts[part])
        asked = Asked(
            self.model,
            texts,
            replace(questions.encoded, ids=questions.encoded.ids[part]),
            lambda: questions.answers[number][part],
            lambda: questions.states[number][part],
        )
        rulings = checked(self._judge, self._judge.judge(asked), len(texts))
        return tuple(ruling.outcome for ruling in rulings)


def check_metrics(metrics: Sequence[Metric], rows: Sequence[Row], behaviour: str) -> None:
    """Check that something of ``metrics`` could be measured.

    Raises:
        MeasurementError: there is no row at all.
    """
    if not rows:
        raise MeasurementError(
            f"none of {', '.join(metrics)} can be measured of this model for '{behaviour}': it has "
            "no first tokens that tell. Measure refusal_harmful, kl_first or perplexity_heldout."
        )
