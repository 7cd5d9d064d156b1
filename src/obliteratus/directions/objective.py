"""What tuning lowers: refusal on some prompts and divergence on others, with gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import DirectionError
from obliteratus.events import without_progress
from obliteratus.measure.divergence import kl_divergence
from obliteratus.measure.generation import generate
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.gradients import final_states
from obliteratus.prompts.contrast import ContrastSet, Prompt

BATCH_PROMPTS = 32
"""Run at once where no gradients are needed: as many tokens as are fastest on two cores."""
T = TypeVar("T")


@dataclass(frozen=True)
class Losses:
    """One value per prompt, with their graph where gradients were asked for.

    ``log_odds`` of refusal at the first token; ``kl`` in nats, the mean over the first token and
    those of the answer; ``first_kl`` that of the first token alone.
    """

    log_odds: Float64[Tensor, " refused"]
    kl: Float64[Tensor, " kept"]
    first_kl: Float64[Tensor, " kept"]

    @property
    def refusal(self) -> Float64[Tensor, " refused"]:
        """softplus(log-odds) = −log(1 − p): what a prompt that is answered has none of."""
        return torch.nn.functional.softplus(self.log_odds)

    def total(self, kl_weight: float) -> Float64[Tensor, ""]:
        """Return mean refusal + ``kl_weight`` · mean KL."""
        return self.refusal.mean() + kl_weight * self.kl.mean()


class Objective:
    """Refusal of one group of prompts and divergence on another, under the hooks that are active.

    ``refused`` prompts are to be answered: harmful ones, of ``categories`` only where these are
    given. ``kept`` prompts are to be answered as before: harmless ones, and the harmful ones of all
    other categories. On these the KL is that of the first token and of ``response_tokens`` more of
    the original's own greedy answer, so that refusals cannot move behind the first token. Prompts
    and answers are token ids in memory, nothing else is kept of them.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: ContrastSet,
        tokens: RefusalTokens,
        *,
        response_tokens: int,
        categories: Sequence[str] = (),
        most_kept: int | None = None,
        system: str | None = None,
        recompute: bool = False,
    ) -> None:
        """Let the model answer what is to be kept; run it without an edit.

        At most ``most_kept`` prompts are kept, at equal distances. ``recompute`` spends time to
        save memory (:func:`obliteratus.probe.gradients.final_states`).

        Raises:
            DirectionError: there is no harmful prompt of these categories.
        """
        self._model, self._tokens, self._recompute = model, tokens, recompute
        self._head = head_of(model)
        refused = [each for each in prompts.harmful if _is_of(each, categories)]
        if not refused:
            raise DirectionError(
                f"none of {len(prompts.harmful)} harmful prompts is of "
                f"{', '.join(categories) or 'any category'}; set distill.tune.categories."
            )
        others = [each for each in prompts.harmful if not _is_of(each, categories)]
        kept = [*prompts.harmless, *others]
        if most_kept is not None and len(kept) > most_kept:
            kept = [kept[index * len(kept) // most_kept] for index in range(most_kept)]
        encoded = encode(model, [each.text for each in (*refused, *kept)], system=system)
        self._prefix = encoded.shared_prefix
        self.refused: tuple[Prompt, ...] = tuple(refused)
        self.kept: tuple[Prompt, ...] = tuple(kept)
        self._refused_ids = encoded.ids[: len(refused)]
        self._kept_ids: list[tuple[int, ...]] = []
        self._original: list[Tensor] = []
        self._answer(replace(encoded, ids=encoded.ids[len(refused) :]), response_tokens)

    def _answer(self, kept: Encoded, count: int) -> None:
        """Keep each prompt with the first tokens of its answer, and the states that predict them.

        A token that ends an answer is the last that is predicted, and is not read.
        """
        answers: list[tuple[int, ...]] = [()] * len(kept)
        if count:
            with without_progress():
                found = generate(self._model, kept, max_new_tokens=count, task="answer")
            answers = [e.written[:-1] if e.is_finished else e.written for e in found]
        self._kept_ids = [(*ids, *answer) for ids, answer in zip(kept.ids, answers, strict=True)]
        for batch in _batches(range(len(kept)), gradients=False):
            counts = [len(answers[row]) + 1 for row in batch]
            self._original += self._states(
                [self._kept_ids[row] for row in batch], counts, gradients=False
            )

    def losses(
        self, refused: Sequence[int], kept: Sequence[int], *, gradients: bool = True
    ) -> Losses:
        """Return the losses of the prompts of these numbers, under the hooks that are active."""
        odds: list[Tensor] = []
        divergence: list[Tensor] = []
        places = [*((row, True) for row in refused), *((row, False) for row in kept)]
        for batch in _batches(places, gradients=gradients):
            first = [self._refused_ids[row] for row, is_refused in batch if is_refused]
            rest = [row for row, is_refused in batch if not is_refused]
            original = [self._original[row] for row in rest]
            states = self._states(
                [*first, *(self._kept_ids[row] for row in rest)],
                [1] * len(first) + [len(each) for each in original],
                gradients=gradients,
            )
            if first:
                found = self._head.log_probabilities(torch.cat(states[: len(first)]))
                odds.append(log_odds(found, self._tokens.ids))
            if rest:
                kl = kl_divergence(
                    self._head.log_probabilities(torch.cat(original)),
                    self._head.log_probabilities(torch.cat(states[len(first) :])),
                )
                divergence += kl.split([len(each) for each in original])
        nothing = torch.empty(0, dtype=torch.float64)
        return Losses(
            torch.cat(odds) if odds else nothing,
            torch.stack([each.mean() for each in divergence]) if divergence else nothing,
            torch.stack([each[0] for each in divergence]) if divergence else nothing,
        )

    def measured(self, *, refused: bool = True, kept: bool = True) -> Losses:
        """Return the losses of all prompts, or of those of one kind, without gradients."""
        rows = range(len(self.refused) if refused else 0), range(len(self.kept) if kept else 0)
        return self.losses(*rows, gradients=False)

    def _states(
        self, ids: Sequence[Sequence[int]], counts: Sequence[int], *, gradients: bool
    ) -> list[Float[Tensor, "position d_model"]]:
        """Return the states at the last ``counts`` tokens of each row.

        All rows are run at once, or, where one is shorter than the most that is asked of any,
        those of each count at once.
        """
        most, shortest = max(counts), min(len(row) for row in ids) - self._prefix
        runs = [most] * len(ids) if shortest >= most else counts
        found: dict[int, Float[Tensor, "position d_model"]] = {}
        for last in dict.fromkeys(runs):
            rows = [row for row, asked in enumerate(runs) if asked == last]
            states = final_states(
                self._model,
                [ids[row] for row in rows],
                prefix=self._prefix,
                last=last,
                gradients=gradients,
                recompute=self._recompute,
            )
            found.update(
                {row: each[-counts[row] :] for row, each in zip(rows, states, strict=True)}
            )
        return [found[row] for row in range(len(ids))]


def _batches(rows: Sequence[T], *, gradients: bool) -> Iterator[Sequence[T]]:
    """Yield all rows at once where a graph joins them, else a few at a time."""
    size = len(rows) if gradients else BATCH_PROMPTS
    for start in range(0, len(rows), size or 1):
        yield rows[start : start + size]


def _is_of(prompt: Prompt, categories: Sequence[str]) -> bool:
    return not categories or prompt.category in categories
