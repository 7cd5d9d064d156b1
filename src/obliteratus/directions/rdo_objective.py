"""What refusal direction optimisation lowers (arXiv:2502.17420): three losses of one direction.

The targets are the model's own answers under the direction that it begins with. They are kept as
token ids in memory, for as long as the optimisation runs, and are written nowhere.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.score import Scorer
from obliteratus.errors import DirectionError
from obliteratus.events import without_progress
from obliteratus.measure.divergence import kl_divergence
from obliteratus.measure.generation import generate
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import refusal_log_odds
from obliteratus.models.chat import Encoded, encode
from obliteratus.operator.hooks import adding, changing, edited
from obliteratus.operator.removal import removal
from obliteratus.probe.gradients import final_states
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.settings import RdoSettings
from obliteratus.shapes import Layer

SENTENCE_END = "."
"""Refusals are cut before it, as published: what follows the first sentence is something else."""


@dataclass(frozen=True)
class RdoLoss:
    """Means over one batch, with their graph, in nats per token."""

    ablation: Float[Tensor, ""]
    addition: Float[Tensor, ""]
    retain: Float[Tensor, ""]

    def total(self, settings: RdoSettings) -> Float[Tensor, ""]:
        """Return the sum of all three, weighted by ``settings``."""
        return (
            settings.ablation * self.ablation
            + settings.addition * self.addition
            + settings.retain * self.retain
        )


@dataclass(frozen=True)
class _Answer:
    """A prompt with its answer but for the last token: the last states predict ``targets``."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    original: Float[Tensor, "token d_model"] | None = None


class RdoObjective:
    """The ablation, addition and retain losses of any unit direction, a batch at a time.

    ``start`` is the unit direction whose answers are the targets, ``layer`` and ``length`` are
    where and how long a direction is added: the block behind which the difference in means δ was
    read, and ‖δ‖. ``refused`` are the harmful fit prompts that the model refuses, ``answered`` the
    harmless ones that it does not (log-odds above and below 0): the others would teach the
    opposite.
    """

    def __init__(
        self,
        scorer: Scorer,
        fit: ContrastSet,
        start: Directions,
        settings: RdoSettings,
        *,
        system: str | None = None,
    ) -> None:
        """Measure which prompts the model refuses; run it without an edit.

        Raises:
            DirectionError: ``start`` is not one orthogonal direction for all layers, the model
                refuses no harmful or answers no harmless prompt, or no refusal tokens are known.
        """
        self._scorer, self._model = scorer, scorer.model
        self.start, self.layer, self.length = _start(start, scorer)
        self._tokens = settings.target_tokens
        self._head = head_of(scorer.model)
        n_harmful = len(fit.harmful)
        texts = [prompt.text for prompt in (*fit.harmful, *fit.harmless)]
        encoded = encode(scorer.model, texts, system=system)
        self._harmful = replace(encoded, ids=encoded.ids[:n_harmful])
        self._harmless = replace(encoded, ids=encoded.ids[n_harmful:])
        self.refused, self.answered = self._sorted(encoded, n_harmful)
        self._ablated: dict[int, _Answer] = {}
        self._induced: dict[int, _Answer] = {}
        self._kept: dict[int, _Answer] = {}

    def prepare(self, harmful: Sequence[int], harmless: Sequence[int]) -> None:
        """Make the targets of these prompts, where there are none yet; call it without hooks."""
        self._answer(self._ablated, self._harmful, harmful, self._ablating(self.start))
        new = self._answer(
            self._induced,
            self._harmless,
            harmless,
            adding(self._model, self.layer, (self.length * self.start).to(torch.float32)),
        )
        for row in new:
            self._induced[row] = self._cut(self._induced[row])
        for row in self._answer(self._kept, self._harmless, harmless, contextlib.nullcontext()):
            states = self._states([self._kept[row]])[0].detach()
            self._kept[row] = replace(self._kept[row], original=states)

    def ablation(
        self, direction: Float64[Tensor, " d_model"], harmful: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Return the NLL of the answers with δ̂ ablated, with ``direction`` ablated instead."""
        with self._ablating(direction):
            return self._nll([self._ablated[row] for row in harmful])

    def addition(
        self, direction: Float64[Tensor, " d_model"], harmless: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Return the NLL of the refusals with δ added, with ‖δ‖ ``direction`` added instead."""
        vector = self.length * direction
        with changing(self._model, self.layer, vector.to):
            return self._nll([self._induced[row] for row in harmless])

    def retain(
        self, direction: Float64[Tensor, " d_model"], harmless: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Return KL(original ‖ ``direction`` ablated) on the original's own answers."""
        answers = [self._kept[row] for row in harmless]
        with self._ablating(direction):
            states = self._states(answers)
        originals = [each.original for each in answers if each.original is not None]
        kl = kl_divergence(
            self._head.log_probabilities(torch.cat(originals)),
            self._head.log_probabilities(torch.cat(states)),
        )
        return _mean_of_means(kl, answers)

    def loss(
        self,
        direction: Float64[Tensor, " d_model"],
        harmful: Sequence[int],
        harmless: Sequence[int],
    ) -> RdoLoss:
        """Return all three losses of a unit ``direction``; the prompts must have been prepared."""
        return RdoLoss(
            self.ablation(direction, harmful),
            self.addition(direction, harmless),
            self.retain(direction, harmless),
        )

    def _ablating(
        self, direction: Float64[Tensor, " d_model"]
    ) -> contextlib.AbstractContextManager[None]:
        bases = dict.fromkeys(self._scorer.layers, direction[None])
        return edited(self._model, removal(self._model, bases, post_norm=self._scorer.post_norm))

    def _sorted(self, encoded: Encoded, n_harmful: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._scorer.tokens is None:
            raise DirectionError(
                "a direction cannot be optimised where no refusal tokens are known: they tell "
                "which prompts the model refuses. Set distill.rdo.steps=0."
            )
        odds = refusal_log_odds(
            self._model, encoded, self._scorer.tokens, task="find refusals"
        ).tolist()
        refused = tuple(row for row, value in enumerate(odds[:n_harmful]) if value > 0)
        answered = tuple(row for row, value in enumerate(odds[n_harmful:]) if value < 0)
        if not refused or not answered:
            raise DirectionError(
                f"the model refuses {len(refused)} of {n_harmful} harmful fit prompts in its first "
                f"token and answers {len(answered)} of {len(odds) - n_harmful} harmless ones, so "
                "there is nothing to optimise. Use another method, or other prompts."
            )
        return refused, answered

    def _answer(
        self,
        found: dict[int, _Answer],
        prompts: Encoded,
        rows: Sequence[int],
        hooks: contextlib.AbstractContextManager[None],
    ) -> list[int]:
        """Add the answers of ``rows`` that are missing; return which those were."""
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        if missing:
            asked = replace(prompts, ids=tuple(prompts.ids[row] for row in missing))
            with hooks, without_progress():
                said = generate(self._model, asked, max_new_tokens=self._tokens, task="targets")
            for row, ids, each in zip(missing, asked.ids, said, strict=True):
                found[row] = _Answer((*ids, *each.written[:-1]), each.written)
        return missing

    def _cut(self, answer: _Answer) -> _Answer:
        tokenizer, targets = self._model.tokenizer, answer.targets
        length = first_sentence(targets, lambda ids: str(tokenizer.decode(list(ids))))
        return _Answer(answer.ids[: len(answer.ids) - (len(targets) - length)], targets[:length])

    def _nll(self, answers: Sequence[_Answer]) -> Float[Tensor, ""]:
        found = self._head.log_probabilities(torch.cat(self._states(answers)))
        targets = torch.tensor([token for each in answers for token in each.targets])
        picked = found.gather(1, targets.to(found.device)[:, None])[:, 0]
        return -_mean_of_means(picked, answers)

    def _states(self, answers: Sequence[_Answer]) -> list[Float[Tensor, "token d_model"]]:
        """Return the states that predict the targets of each answer, with their graph.

        Rows run together where each is as long, behind the shared prefix, as the longest answer.
        """
        prefix = self._harmful.shared_prefix
        groups: list[list[int]] = []
        for row in sorted(range(len(answers)), key=lambda row: -len(answers[row].targets)):
            room = len(answers[row].ids) - prefix
            group = next((g for g in groups if len(answers[g[0]].targets) <= room), None)
            if group is None:
                groups.append(group := [])
            group.append(row)
        found: dict[int, Tensor] = {}
        for group in groups:
            last = len(answers[group[0]].targets)
            rows = [answers[row].ids for row in group]
            hidden = final_states(self._model, rows, prefix=prefix, last=last)
            for row, states in zip(group, hidden, strict=True):
                found[row] = states[last - len(answers[row].targets) :]
        return [found[row] for row in range(len(answers))]


def first_sentence(targets: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """Return how many ``targets`` come before the one that ends the first sentence, at least 1."""
    ends = (n for n in range(1, len(targets)) if SENTENCE_END in decode(targets[: n + 1]))
    return next(ends, len(targets))


def _start(start: Directions, scorer: Scorer) -> tuple[Tensor, int, float]:
    """Return the direction, where it was read, and ‖δ‖ there."""
    layers: list[Layer] = [layer for layer in start.basis if layer in scorer.layers]
    source, rows = start.source_layer, start.basis[layers[0]]
    is_one = len(rows) == 1 and all(torch.equal(start.basis[each], rows) for each in layers)
    if not isinstance(source, int) or not is_one or start.filters:
        raise DirectionError(
            "a direction is optimised from one orthogonal direction for all layers, and these have "
            f"rank {start.rank}, differ by layer or have filters. Set distill.selection=published "
            "or cosmic, distill.max_rank=1 and another extractor."
        )
    return rows[0].to(torch.float64), source, start.scale[source]


def _mean_of_means(
    values: Float[Tensor, " token"], answers: Sequence[_Answer]
) -> Float[Tensor, ""]:
    """Return the mean over answers of the mean over their tokens."""
    parts = values.split([len(each.targets) for each in answers])
    return torch.stack([part.mean() for part in parts]).mean()
