"""What tuning lowers: refusal on harmful and divergence on harmless prompts, with gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import DirectionError
from obliteratus.events import without_progress
from obliteratus.measure.divergence import kl_divergence
from obliteratus.measure.generation import generate
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import RefusalTokens, log_odds, refusal_log_odds
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.gradients import hidden_with_gradients
from obliteratus.prompts.contrast import ContrastSet


@dataclass(frozen=True)
class Loss:
    """Means over one batch, with their graph: softplus of the refusal log-odds, and KL in nats."""

    refusal: Float[Tensor, ""]
    kl: Float[Tensor, ""]

    def total(self, kl_weight: float) -> Float[Tensor, ""]:
        """Return refusal + ``kl_weight`` · kl."""
        return self.refusal + kl_weight * self.kl


class Objective:
    """Refusal and divergence of an edited model on fit prompts, a batch at a time.

    Harmful prompts are those that the original refuses (log-odds above 0): the others have nothing
    to give. On a harmless prompt the KL is that of the first token and of ``response_tokens`` more
    of the original's own greedy answer, so that refusals cannot move behind the first token.
    """

    def __init__(
        self,
        model: LoadedModel,
        fit: ContrastSet,
        tokens: RefusalTokens,
        *,
        response_tokens: int,
        system: str | None = None,
    ) -> None:
        """Measure which harmful prompts the model refuses; run it without an edit.

        Raises:
            DirectionError: it refuses none of them.
        """
        self._model, self._tokens, self._more = model, tokens, response_tokens
        self._head = head_of(model)
        texts = [prompt.text for side in (fit.harmful, fit.harmless) for prompt in side]
        encoded = encode(model, texts, system=system)
        n_harmful = len(fit.harmful)
        harmful = _rows(encoded, range(n_harmful))
        self._harmless = _rows(encoded, range(n_harmful, len(encoded)))
        odds = refusal_log_odds(model, harmful, tokens, task="find refusals")
        self.refused = tuple(row for row, value in enumerate(odds.tolist()) if value > 0)
        if not self.refused:
            raise DirectionError(
                f"the model refuses none of {n_harmful} harmful fit prompts in its first token, so "
                "there is nothing to tune. Use another method, or prompts that it refuses."
            )
        self._harmful = harmful
        self._answers: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    @property
    def n_harmless(self) -> int:
        """The number of harmless fit prompts."""
        return len(self._harmless)

    def prepare(self, harmless: Sequence[int]) -> None:
        """Answer harmless prompts with the model as it is; call it without hooks.

        The answer's tokens and the final hidden states at the tokens whose prediction is compared
        are kept.
        """
        missing = [row for row in harmless if row not in self._answers]
        prompts = _rows(self._harmless, missing)
        groups: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for row, ids, answer in zip(missing, prompts.ids, self._answered(prompts), strict=True):
            groups.setdefault(1 + len(answer), []).append((row, (*ids, *answer)))
        for count, members in groups.items():
            rows = [ids for _, ids in members]
            hidden = hidden_with_gradients(
                self._model, rows, prefix=prompts.shared_prefix, last=count
            )
            for (row, ids), states in zip(members, hidden.detach(), strict=True):
                self._answers[row] = (ids, states)

    def _answered(self, prompts: Encoded) -> list[tuple[int, ...]]:
        """Return the first tokens of the answers, without one that ends an answer."""
        if not self._more or not prompts.ids:
            return [() for _ in prompts.ids]
        with without_progress():
            found = generate(self._model, prompts, max_new_tokens=self._more, task="answer")
        return [each.token_ids[:-1] if each.is_finished else each.token_ids for each in found]

    def loss(self, harmful: Sequence[int], harmless: Sequence[int]) -> Loss:
        """Return both means over the prompts of these numbers, under the hooks that are active.

        ``harmless`` must have been prepared.
        """
        prefix = self._harmful.shared_prefix
        bad = hidden_with_gradients(
            self._model, [self._harmful.ids[row] for row in harmful], prefix=prefix, last=1
        )
        odds = log_odds(self._head.log_probabilities(bad[:, 0]), self._tokens.ids)
        divergences: list[Tensor] = []
        for count, rows in self._by_count(harmless).items():
            good = hidden_with_gradients(
                self._model, [self._answers[row][0] for row in rows], prefix=prefix, last=count
            )
            original = torch.cat([self._answers[row][1] for row in rows])
            kl = kl_divergence(
                self._head.log_probabilities(original),
                self._head.log_probabilities(good.flatten(0, 1)),
            )
            divergences.append(kl.view(len(rows), count).mean(dim=1))
        return Loss(torch.nn.functional.softplus(odds).mean(), torch.cat(divergences).mean())

    def _by_count(self, rows: Sequence[int]) -> dict[int, list[int]]:
        """Group prompts by the number of tokens that are compared: short answers have fewer."""
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(len(self._answers[row][1]), []).append(row)
        return groups


def _rows(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    """Return some prompts of ``encoded``, with the same shared prefix."""
    return Encoded(
        tuple(encoded.ids[row] for row in rows),
        encoded.shared_prefix,
        encoded.post_instruction,
        encoded.has_template,
    )
