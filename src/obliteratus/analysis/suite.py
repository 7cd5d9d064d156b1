"""One model untouched, and the same with a direction out: what the evaluation suite compares."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.intervening import scores
from obliteratus.analysis.lens import last_streams, layers_of
from obliteratus.analysis.turned import Change, ablated, another_out, out, turned
from obliteratus.events import without_progress
from obliteratus.measure.divergence import first_token_kl
from obliteratus.measure.likelihood import document_nll
from obliteratus.probe.forward import last_hidden
from obliteratus.shapes import Layer

RANDOM = 6
STREAM = 0x65766173  # added to the seed, so that no other use of it has drawn the same directions


@dataclass(frozen=True)
class Suite:
    """What was measured; vector 0 is the removal, the others are the same along random directions.

    ``before`` and ``after`` are streams at the last token, of both classes. ``fall`` is of refusal
    log-odds of harmful prompts, its nulls with random directions out; ``kl`` in nats on harmless
    prompts, ``nll`` the rise in nats per token of each document.
    """

    layers: tuple[Layer, ...]
    before: Float64[np.ndarray, "prompt layer d_model"]
    after: Float64[np.ndarray, "vector prompt layer d_model"]
    fall: Float64[np.ndarray, "vector harmful"]
    kl: Float64[np.ndarray, "vector harmless"]
    nll: Float64[np.ndarray, "vector document"]


def measure_suite(
    bench: Bench,
    row: Float64[Tensor, " d_model"],
    layer: Layer,
    texts: Sequence[str],
    *,
    vectors: int = RANDOM,
    seed: int = 0,
) -> Suite:
    """Run the bench's prompts and ``texts`` untouched, without ``row``, and with its nulls.

    ``layer`` is where the row was read.

    Raises:
        MeasurementError: see :func:`obliteratus.analysis.turned.ablated`.
    """
    generator = torch.Generator().manual_seed(STREAM + seed)
    row = row.double().cpu()
    changes = [out(row), *(turned(row, generator) for _ in range(vectors))]
    before = _State.of(bench, texts)
    harmless = before.streams[len(bench.subset.harmful) :, layers_of(bench.model).index(layer)]
    mean = torch.from_numpy(harmless.mean(axis=0))
    random = [another_out(row, mean, generator) for _ in range(vectors)]
    after: list[_State] = []
    for change in changes:
        with ablated(bench.model, change):
            after.append(_State.of(bench, texts))
    odds = [_odds(bench, change) for change in (changes[0], *random)]
    return Suite(
        layers=layers_of(bench.model),
        before=before.streams,
        after=np.stack([each.streams for each in after]),
        fall=_odds(bench, None) - np.stack(odds),
        kl=np.stack(
            [
                first_token_kl(before.hidden, bench.head, each.hidden, bench.head).numpy()
                for each in after
            ]
        ),
        nll=np.stack([each.nll - before.nll for each in after]),
    )


def _odds(bench: Bench, change: Change | None) -> Float64[np.ndarray, " harmful"]:
    made = contextlib.nullcontext() if change is None else ablated(bench.model, change)
    with made:
        return scores(bench.model, bench.head, bench.tokens, bench.subset.harmful)


@dataclass(frozen=True)
class _State:
    """What is seen of the model under whatever hooks are active."""

    streams: np.ndarray
    hidden: Tensor
    nll: np.ndarray

    @classmethod
    @torch.no_grad()
    def of(cls, bench: Bench, texts: Sequence[str]) -> "_State":
        harmful, harmless = bench.subset.harmful, bench.subset.harmless
        with without_progress():
            streams = [last_streams(bench.model, side).double() for side in (harmful, harmless)]
            hidden = last_hidden(bench.model, harmless, task="evaluate")
            found = document_nll(bench.model, texts, task="evaluate", head=bench.head)
        return cls(torch.cat(streams).numpy(), hidden, (found.nll / found.tokens).numpy())
