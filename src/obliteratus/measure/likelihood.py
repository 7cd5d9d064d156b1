"""How probable a model finds held-out documents and given completions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.measure.generation import Completion
from obliteratus.measure.head import Head, chunks, head_of
from obliteratus.measure.states import TokenStates, completion_hidden, predicting_states
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel

MAX_WINDOW = (
    2048  # tokens: longer contexts cost memory and change little for documents of this size
)


@dataclass(frozen=True)
class Likelihood:
    """Per document (or completion): ``nll`` in nats, summed, and how many ``tokens`` were scored.

    perplexity = exp(Σ nll / Σ tokens); documents, not tokens, are independent units.
    """

    nll: Float64[Tensor, " document"]
    tokens: Int64[Tensor, " document"]

    @property
    def per_token(self) -> float:
        """The token-weighted mean in nats."""
        return float(self.nll.sum() / self.tokens.sum())


def document_nll(
    model: LoadedModel, texts: Sequence[str], *, task: str, head: Head | None = None
) -> Likelihood:
    """Return −Σ log p(token | the tokens before it) of every text, without a chat template.

    The tokenizer decides on a beginning-of-sequence token: with one, every token of the text is
    scored; without, the first token has nothing before it and is not. No end token is added. A text
    longer than the context is cut into windows that overlap by half, and each token is scored once,
    with at least half a window before it. ``head`` is that of the model unless it is given.

    Raises:
        MeasurementError: there is no text, or one with nothing to score.
    """
    if not texts:
        raise MeasurementError("there are no documents to measure. Give at least one text.")
    windows: list[tuple[int, ...]] = []
    scored: list[int] = []
    owner: list[int] = []
    for document, text in enumerate(texts):
        for ids, count in _windows(_token_ids(model, text), _window_size(model)):
            windows.append(ids)
            scored.append(count)
            owner.append(document)
    encoded = Encoded(tuple(windows), shared_prefix=0, post_instruction=0, has_template=False)
    head, owners = head or head_of(model), torch.tensor(owner)
    nll = torch.zeros(len(texts), dtype=torch.float64)
    tokens = torch.zeros(len(texts), dtype=torch.int64)
    for states in predicting_states(model, encoded, scored, task=task):
        documents = owners[states.prompt]
        nll.index_add_(0, documents, token_nll(states, head))
        tokens.index_add_(0, documents, torch.ones_like(documents))
    return Likelihood(nll, tokens)


def completion_nll(
    model: LoadedModel, encoded: Encoded, completions: Sequence[Completion], *, task: str
) -> Likelihood:
    """Return −Σ log p of every completion after its prompt, as the model would have said it.

    Raises:
        MeasurementError: see :func:`obliteratus.measure.states.completion_hidden`.
    """
    states = completion_hidden(model, encoded, completions, task=task)
    nll = torch.zeros(len(completions), dtype=torch.float64)
    nll.index_add_(0, states.prompt, token_nll(states, head_of(model)))
    return Likelihood(nll, torch.bincount(states.prompt, minlength=len(completions)))


def token_nll(states: TokenStates, head: Head) -> Float64[Tensor, " row"]:
    """Return −log p(target) of every row, with logits of a few rows at a time."""
    found: list[Tensor] = []
    start = 0
    for hidden in chunks(states.hidden):
        target = states.target[start : start + hidden.shape[0], None].to(head.weight.device)
        found.append(-head.log_probabilities(hidden).gather(1, target)[:, 0].double().cpu())
        start += hidden.shape[0]
    return torch.cat(found)


def _token_ids(model: LoadedModel, text: str) -> tuple[int, ...]:
    """Return the tokens of plain text with the beginning that the tokenizer adds, and no end."""
    ids = tuple(model.tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    end = model.tokenizer.eos_token_id
    return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids


def _window_size(model: LoadedModel) -> int:
    most = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    return min(MAX_WINDOW, most or MAX_WINDOW)


def _windows(ids: tuple[int, ...], size: int) -> list[tuple[tuple[int, ...], int]]:
    """Return (tokens, how many of the last are scored): each token but the first once."""
    if len(ids) <= size:
        return [(ids, len(ids) - 1)]
    windows = [(ids[:size], size - 1)]
    done = size
    while done < len(ids):
        end = min(done + size // 2, len(ids))
        windows.append((ids[end - size : end], end - done))
        done = end
    return windows
