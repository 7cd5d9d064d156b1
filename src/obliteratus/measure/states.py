"""Final hidden states of exactly those positions that predict a given token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.measure.generation import Completion
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import forward_batches


@dataclass(frozen=True)
class TokenStates:
    """One row per predicted token: ``hidden`` is the final-norm output that predicts ``target``.

    ``prompt`` is the index of its sequence and ``position`` its place there, counted from the first
    scored token. Rows are sorted by prompt, then position.
    """

    hidden: Float[Tensor, "row d_model"]
    target: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]
    position: Int[Tensor, " row"]

    def __len__(self) -> int:
        return self.hidden.shape[0]


def completion_hidden(
    model: LoadedModel,
    encoded: Encoded,
    completions: Sequence[Completion],
    *,
    max_tokens: int = 0,
    task: str,
) -> TokenStates:
    """Run each prompt followed by its completion (teacher forcing) and keep what predicts it.

    Position 0 is the last prompt token's state, which predicts the completion's first token.
    ``max_tokens`` keeps that many tokens of each completion (0: all, the stop token included).

    Raises:
        MeasurementError: the numbers of prompts and completions differ, a completion is empty, or a
            sequence is longer than the model takes.
    """
    if len(encoded.ids) != len(completions):
        raise MeasurementError(
            f"there are {len(encoded.ids)} prompts and {len(completions)} completions. Give each "
            "prompt its own completion."
        )
    kept = [completion.token_ids[: max_tokens or None] for completion in completions]
    sequences = replace(encoded, ids=tuple(map(tuple.__add__, encoded.ids, kept)))
    parts = list(predicting_states(model, sequences, [len(ids) for ids in kept], task=task))
    return _sorted(parts)


def predicting_states(
    model: LoadedModel, sequences: Encoded, scored: Sequence[int], *, task: str
) -> Iterator[TokenStates]:
    """Yield, batch by batch, the states that predict the last ``scored[i]`` tokens of sequence i.

    The last token of a sequence is not run: it predicts nothing that is scored.

    Raises:
        MeasurementError: a sequence has nothing scored, or no token before the scored ones.
    """
    unusable = [
        index
        for index, (ids, count) in enumerate(zip(sequences.ids, scored, strict=True))
        if not 1 <= count < len(ids)
    ]
    if unusable or not scored:
        raise MeasurementError(
            f"{len(unusable)} of {len(scored)} sequences have no token to score after a first one"
            + (f" (the first is number {unusable[0]}). Leave them out." if unusable else ".")
        )
    free = min(len(ids) - count for ids, count in zip(sequences.ids, scored, strict=True)) - 1
    inputs = replace(
        sequences,
        ids=tuple(ids[:-1] for ids in sequences.ids),
        shared_prefix=min(sequences.shared_prefix, free),
    )
    counts = torch.tensor(scored)
    for batch, hidden in forward_batches(model, inputs, task=task):
        rows = torch.tensor(batch.rows)
        lengths = batch.lengths.cpu()
        first = lengths - counts[rows]
        column = torch.arange(hidden.shape[1])
        is_scored = (column >= first[:, None]) & (column < lengths[:, None])
        row, place = torch.nonzero(is_scored, as_tuple=True)
        position = place - first[row]
        target = [
            sequences.ids[index][position - scored[index]]
            for index, position in zip(rows[row].tolist(), position.tolist(), strict=True)
        ]
        yield TokenStates(
            hidden=hidden[row.to(hidden.device), place.to(hidden.device)],
            target=torch.tensor(target),
            prompt=rows[row],
            position=position,
        )


def _sorted(parts: Sequence[TokenStates]) -> TokenStates:
    prompt = torch.cat([part.prompt for part in parts])
    order = torch.argsort(prompt, stable=True)
    hidden = torch.cat([part.hidden for part in parts])
    return TokenStates(
        hidden=hidden[order.to(hidden.device)],
        target=torch.cat([part.target for part in parts])[order],
        prompt=prompt[order],
        position=torch.cat([part.position for part in parts])[order],
    )
