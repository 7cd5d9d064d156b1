"""What tuning lowers: refusal on some prompts and divergence on others, with gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
        self._kept_ids: dict[int, tuple[int, ...]] = {}
        self._original: dict[int, Tensor] = {}
        self._answer(replace(encoded, ids=encoded.ids[len(refused) :]), response_tokens)

    def _answer(self, kept: Encoded, count: int) -> None:
        """Keep each prompt with the first tokens of its answer, and the states that predict them.

        A token that ends an answer is the last that is predicted, and is not read.
        """
        answers: list[tuple[int, ...]] = [()] * len(kept)
        if count:
            with without_progress():
                found = generate(self._model, kept, max_new_tokens=count, task="answer")
            answers = [e.token_ids[:-1] if e.is_finished else e.token_ids for e in found]
        for row, (ids, answer) in enumerate(zip(kept.ids, answers, strict=True)):
            self._kept_ids[row] = (*ids, *answer)
            self._original[row] = torch.empty(len(answer) + 1, 0)  # as many states as predictions
        for rows, states in self._kept_states(range(len(kept)), gradients=False):
            self._original.update(zip(rows, states, strict=True))

    def losses(
        self, refused: Sequence[int], kept: Sequence[int], *, gradients: bool = True
    ) -> Losses:
        """Return the losses of the prompts of these numbers, under the hooks that are active."""
        odds: list[Tensor] = []
        for rows in _batches(refused, gradients=gradients):
            hidden = self._states([self._refused_ids[row] for row in rows], 1, gradients=gradients)
            odds.append(log_odds(self._head.log_probabilities(hidden[:, 0]), self._tokens.ids))
        divergence: dict[int, Tensor] = {}
        for rows, states in self._kept_states(kept, gradients=gradients):
            original = torch.cat([self._original[row] for row in rows])
            kl = kl_divergence(
                self._head.log_probabilities(original),
                self._head.log_probabilities(states.flatten(0, 1)),
            )
            divergence.update(zip(rows, kl.view(len(rows), -1), strict=True))
        found = [divergence[row] for row in kept]
        return Losses(
            torch.cat(odds),
            torch.stack([each.mean() for each in found]),
            torch.stack([each[0] for each in found]),
        )

    def measured(self) -> Losses:
        """Return the losses of all prompts, without gradients."""
        return self.losses(range(len(self.refused)), range(len(self.kept)), gradients=False)

    def _kept_states(
        self, rows: Sequence[int], *, gradients: bool
    ) -> Iterator[tuple[Sequence[int], Float[Tensor, "row position d_model"]]]:
        """Yield rows with the states that predict their answers; short answers have fewer."""
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(len(self._original[row]), []).append(row)
        for count, members in groups.items():
            for batch in _batches(members, gradients=gradients):
                ids = [self._kept_ids[row] for row in batch]
                yield batch, self._states(ids, count, gradients=gradients)

    def _states(
        self, ids: Sequence[Sequence[int]], last: int, *, gradients: bool
    ) -> Float[Tensor, "row position d_model"]:
        return final_states(
            self._model,
            ids,
            prefix=self._prefix,
            last=last,
            gradients=gradients,
            recompute=self._recompute,
        )


def _batches(rows: Sequence[int], *, gradients: bool) -> Iterator[Sequence[int]]:
    """Yield all rows at once where a graph joins them, else a few at a time."""
    size = len(rows) if gradients else BATCH_PROMPTS
    for start in range(0, len(rows), size or 1):
        yield rows[start : start + size]


def _is_of(prompt: Prompt, categories: Sequence[str]) -> bool:
    return not categories or prompt.category in categories
