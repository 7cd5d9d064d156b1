"""One prompt answered by two models at once, and at every token what both of them would say next.

Row 0 is the original's answer and row 1 the edited model's. Both models run both rows, each with
keys and values of its own, so that wherever an answer has got to there are two distributions of
the token that comes next: that of the model whose answer it is, which chooses, and that of the
other one.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.measure.answer_rows import Batch, prefill, step
from obliteratus.measure.beside import ANSWERS, Token
from obliteratus.measure.divergence import kl_divergence
from obliteratus.measure.generation import stop_tokens
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.spelling import Spelling
from obliteratus.operator.steering import Dial


@dataclass(frozen=True)
class Side:
    """One of the two models; ``active`` is entered around each of its passes.

    So both sides may be one model in memory, of which hooks make two (:func:`steered_side`).
    """

    model: LoadedModel
    active: Callable[[], AbstractContextManager[object]] = nullcontext


def steered_side(model: LoadedModel, dial: Dial, strength: Callable[[], float]) -> Side:
    """Return ``model`` with its ``dial`` at ``strength``, which is asked before every pass."""

    @contextmanager
    def active() -> Generator[None]:
        before = dial.strength
        dial.strength = strength()
        try:
            yield
        finally:
            dial.strength = before

    return Side(model, active)


@torch.no_grad()
def side_by_side(
    original: Side,
    edited: Side,
    prompt: str,
    *,
    max_new_tokens: int,
    tokens: RefusalTokens | None = None,
    system: str | None = None,
) -> Generator[Token]:
    """Yield the tokens of both answers as they are chosen, each the likeliest one of its model.

    The answers are those of :func:`obliteratus.measure.generation.generate`, up to rounding: a
    model that thinks is kept from it. They grow together, the original's first; one that has ended
    is run no further. ``tokens`` are those of the original. The generator may be closed at any
    token; nothing of either model is changed by it.

    Raises:
        MeasurementError: the two have different vocabularies or encode the prompt differently,
            prompt and answer are longer than they take, or logits are NaN.
        UsageError: ``system`` is given and the model cannot take one.
        UnsupportedArchitectureError: the model's cache or head is none of those that are known.
    """
    sides = (original, edited)
    prompt_ids = _same_prompt(original.model, edited.model, prompt, system)
    for side in sides:
        _check_fits(side.model, len(prompt_ids), max_new_tokens)
    runs = [_Run(side, prompt_ids, max_new_tokens) for side in sides]
    spellings = [Spelling(side.model.tokenizer) for side in sides]
    stops = [stop_tokens(side.model) for side in sides]
    for index in range(max_new_tokens):
        before, after = (run.predictions().to(original.model.device) for run in runs)
        kl = kl_divergence(before, after).tolist()
        scores = [None if tokens is None else log_odds(p, tokens.ids) for p in (before, after)]
        chosen: list[int] = []
        for place, row in enumerate(list(runs[0].rows.index)):
            token_id = int((before, after)[row][place].argmax())
            chosen.append(token_id)
            is_end = token_id in stops[row]
            text = spellings[row].name(token_id) if is_end else spellings[row].add(token_id)
            odds = [None if score is None else float(score[place]) for score in scores]
            yield Token(ANSWERS[row], index, token_id, text, is_end, kl[place], odds[0], odds[1])
            for run in runs:
                run.rows.is_live[place] = not is_end
        if index + 1 == max_new_tokens or not any(runs[0].rows.is_live):
            return
        for run in runs:
            run.move_on(chosen)


class _Run:
    """A side while it runs both answers."""

    def __init__(self, side: Side, prompt_ids: tuple[int, ...], max_new_tokens: int) -> None:
        self._side = side
        with side.active():
            self._head: Head = head_of(side.model)
            batch = Batch([prompt_ids] * len(ANSWERS), None, max_new_tokens)
            self._hidden, self.rows = prefill(side.model, batch)

    def predictions(self) -> Float[Tensor, "row vocab"]:
        """Return the log-probabilities of what comes next in every row that is run."""
        return self._head.log_probabilities(self._hidden)

    def move_on(self, chosen: list[int]) -> None:
        """Take the next token of every row, leave out those that have ended, and run the others."""
        self.rows.append(torch.tensor(chosen, device=self.rows.last.device))
        self.rows.drop_finished(1)
        with self._side.active():
            self._hidden = step(self._side.model, self.rows)


def _same_prompt(
    original: LoadedModel, edited: LoadedModel, prompt: str, system: str | None
) -> tuple[int, ...]:
    """Return the tokens of ``prompt``, which must be the same ones for both models."""
    found = encode(original, [prompt], system=system).ids[0]
    if edited is original:
        return found
    names = f"{original.source.asked} and {edited.source.asked}"
    if original.tokenizer.get_vocab() != edited.tokenizer.get_vocab():
        raise MeasurementError(
            f"{names} have different vocabularies, so their predictions cannot be compared. Give a "
            "model and an edit of it."
        )
    if encode(edited, [prompt], system=system).ids[0] != found:
        raise MeasurementError(
            f"{names} put the prompt into different tokens, so they would not be asked the same. "
            "Give two models with one chat template."
        )
    return found


def _check_fits(model: LoadedModel, n_tokens: int, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise MeasurementError(f"an answer has at least 1 token; got {max_new_tokens}.")
    most = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and n_tokens + max_new_tokens > most:
        raise MeasurementError(
            f"the prompt has {n_tokens} tokens; with {max_new_tokens} new ones that is more than "
            f"the {most} that {model.source.asked} takes. Shorten the prompt or ask for fewer."
        )
