"""What the last token's stream would say at every layer, and what it brings into another run."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.analysis.patching import Patcher
from obliteratus.events import track
from obliteratus.measure.head import Head, chunks
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.probe.forward import forward_batches
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Seen:
    """What the head reads in the last token's stream of some prompts, at every layer.

    ``log_odds`` are those of the refusal tokens. ``rank`` is that of the first of them among all
    tokens, 0 where one leads.
    """

    log_odds: Float64[np.ndarray, "prompt layer"]
    rank: Float64[np.ndarray, "prompt layer"]


@dataclass(frozen=True)
class Moved:
    """Log-odds of harmless runs, as they are and with a harmful run's stream at every layer.

    ``harmful`` are those of the runs that the streams were taken from, row by row.
    """

    harmful: Float64[np.ndarray, " pair"]
    harmless: Float64[np.ndarray, " pair"]
    patched: Float64[np.ndarray, "pair layer"]


def layers_of(model: LoadedModel) -> tuple[Layer, ...]:
    """Return ``embedding`` and every block."""
    return ("embedding", *range(model.anatomy.n_layers))


def last_streams(model: LoadedModel, encoded: Encoded) -> Float[Tensor, "prompt layer d_model"]:
    """Return the stream at the last token of every prompt, at every layer of :func:`layers_of`."""
    layers = layers_of(model)
    found = torch.empty(len(encoded), len(layers), model.anatomy.d_model, dtype=model.dtype)
    with capture(model, layers) as stream:
        for batch, _ in forward_batches(model, encoded, task="read streams"):
            rows = torch.arange(len(batch.rows))
            last = batch.lengths.cpu() - 1
            for place, layer in enumerate(layers):
                found[list(batch.rows), place] = stream[layer].cpu()[rows, last]
    return found


@torch.no_grad()
def seen_by_the_head(
    model: LoadedModel,
    head: Head,
    tokens: RefusalTokens,
    streams: Float[Tensor, "prompt layer d_model"],
) -> Seen:
    """Return what the final norm and the head make of every stream (the logit lens)."""
    norm = None
    if model.anatomy.final_norm is not None:
        norm = model.module.get_submodule(model.anatomy.final_norm)
    flat = streams.flatten(0, 1).to(model.device)
    odds: list[Tensor] = []
    ranks: list[Tensor] = []
    for rows in chunks(flat):
        found = head.log_probabilities(rows if norm is None else norm(rows))
        odds.append(log_odds(found, tokens.ids).cpu())
        best = found[:, list(tokens.ids)].max(dim=-1, keepdim=True).values
        ranks.append((found > best).sum(dim=-1).double().cpu())
    shape = streams.shape[:2]
    return Seen(torch.cat(odds).view(shape).numpy(), torch.cat(ranks).view(shape).numpy())


def move_streams(
    patcher: Patcher,
    harmful: Encoded,
    harmless: Encoded,
    streams: Float[Tensor, "prompt layer d_model"],
) -> Moved:
    """Put each harmful prompt's last stream into a harmless run, at one layer after the other.

    Row i of both classes go together (of unpaired classes as many as there are of both).
    ``streams`` are those of the harmful prompts. Only the blocks behind the layer run again.
    """
    n, layers = min(len(harmful), len(harmless)), layers_of(patcher.model)
    scores = np.empty((2, n))
    patched = np.empty((n, len(layers)))
    batches = list(patcher.batches([len(row) for row in harmless.ids[:n]]))
    for batch in track(batches, task="move streams", total=len(batches), unit="batches"):
        rows = list(batch)
        run = patcher.run(patcher.rows([harmless.ids[row] for row in rows]))
        with torch.no_grad():
            whole = patcher.score(patcher.rows([harmful.ids[row] for row in rows]))
        scores[0, rows], scores[1, rows] = whole.numpy(), run.score.numpy()
        for place, layer in enumerate(layers):
            theirs = streams[rows, place].to(patcher.model.device)
            patched[rows, place] = patcher.moved(run, layer, theirs).numpy()
    return Moved(scores[0], scores[1], patched)


def prefix_of(harmful: Encoded, harmless: Encoded) -> tuple[int, ...]:
    """Return the tokens that the prompts of both classes begin with, whatever they ask."""
    shared = min(harmful.shared_prefix, harmless.shared_prefix)
    return harmful.ids[0][:shared] if harmful.ids[0][:shared] == harmless.ids[0][:shared] else ()
