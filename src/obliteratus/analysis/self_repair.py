"""Does the model make up for a direction that is taken out? Compensation CE = DE − TE.

Blocks are let respond to the removal one after the other. With r out of the stream at block k and
of every write behind it, blocks up to k have not responded, F(k) is what the refusal log-odds fall
by, and F(k) − F(j), k behind j, is what the response of the blocks between them does, through
everything behind. A block that read r and passed it on *lowers* refusal as it responds: it mediates
r. One that *raises* it restores what was lost: it repairs. These steps add up to the total effect
TE exactly, so nothing is counted twice, whether repair goes through one block or a chain of them.

CE is the sum of the steps that restore, chosen on one half of the prompts and read on the other;
DE = CE + TE is the fall that would be there had no block restored anything; CE / DE is the share
that is repaired. The scale of the final norm is held at its untouched value: what the norm alone
does, because a shorter stream is divided by less, is split off (arXiv 2402.15390). Blocks that only
read r do not restore, and that harm can still be read after the removal is no repair either. What
restores and what mediates inside one step (a block; in models of more than 12, a few of them) is
seen as their sum, so CE is a lower bound there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import NEGLIGIBLE, beyond
from obliteratus.analysis.resampling import ends, weights
from obliteratus.analysis.turned import Change, ablated_from
from obliteratus.events import without_progress
from obliteratus.measure.head import chunks
from obliteratus.measure.log_odds import log_odds
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import hooked
from obliteratus.probe.forward import forward_batches
from obliteratus.probe.resume import Beginning, first_behind
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate

DEPTHS = 12
"""Layers from which on r is taken out; of deeper models these are spread evenly."""


@dataclass(frozen=True)
class Repair:
    """Falls of the refusal log-odds; vector 0 is the removal, the others are it turned.

    ``late`` is with r out from each of ``starts`` on and the final norm's scale held; the first
    start is the embedding, so that nothing of r is left. ``total`` is that with the norm free.
    ``random`` is with random directions out of everything.
    """

    starts: tuple[Layer, ...]
    late: Float64[np.ndarray, "vector start prompt"]
    total: Float64[np.ndarray, "vector prompt"]
    random: Float64[np.ndarray, "null prompt"]

    @property
    def kept(self) -> Float64[np.ndarray, "vector prompt"]:
        """TE: the fall with r out of everything, the final norm's scale held."""
        return self.late[:, 0]

    @property
    def restored(self) -> Float64[np.ndarray, "vector prompt"]:
        """CE: what the restoring steps give back, chosen on the other half of the prompts."""
        steps = np.diff(self.late, axis=1)
        found = np.empty_like(self.total)
        for half in (0, 1):
            restores = steps[:, :, 1 - half :: 2].mean(axis=2) > 0
            found[:, half::2] = (steps[:, :, half::2] * restores[:, :, None]).sum(axis=1)
        return found


def repair_estimates(repair: Repair, *, seed: int) -> dict[str, Estimate]:
    """Return DE, the compensation CE by blocks, its share of DE, and what the norm gives back.

    DE is supported beyond what a further random direction stays below, compensation beyond what a
    further turned change of equal size does. Where DE is not supported, compensation is
    undetermined and there is no share: of what does nothing, nothing can be made up for.

    Raises:
        MeasurementError: fewer than two prompts, or fewer than three nulls.
    """
    restored = repair.restored
    direct = restored + repair.kept
    acts = beyond(np.vstack([direct[:1], repair.random]), seed)
    blocks = beyond(restored, seed)
    norm = beyond(repair.kept - repair.total, seed)
    if acts.verdict != "supported":
        blocks = replace(blocks, verdict="undetermined")
        return {"direct_effect": acts, "repair_by_blocks": blocks, "repair_by_norm": norm}
    drawn = weights(direct.shape[1], np.random.default_rng(seed))
    ratios = (drawn @ restored[0]) / np.maximum(drawn @ direct[0], NEGLIGIBLE)
    low, high = ends(ratios)
    share = Estimate(
        blocks.value / acts.value,
        (float(low), float(high)),
        n=direct.shape[1],
        null=float(blocks.null or 0.0) / acts.value,
        seed=seed,
        verdict=blocks.verdict,
    )
    return {
        "direct_effect": acts,
        "repair_by_blocks": blocks,
        "repair_share": share,
        "repair_by_norm": norm,
    }


def measure_repair(
    bench: Bench, changes: Sequence[Change], random: Float64[np.ndarray, "null prompt"]
) -> Repair:
    """Make each of ``changes`` on the bench's harmful prompts, from every start on.

    ``random`` are known falls with random directions out.
    """
    starts = depths(bench.model)
    before, sizes = _untouched(bench)
    begun = Beginning(bench.model, bench.subset.harmful, map(first_behind, starts))
    late = np.empty((len(changes), len(starts), len(before)))
    total = np.empty((len(changes), len(before)))
    for number, change in enumerate(changes):
        for place, start in enumerate(starts):
            with begun.skipped(first_behind(start)), ablated_from(bench.model, change, start):
                hidden, own = _seen(bench.model, bench.subset.harmful)
            if place == 0:
                total[number] = before - _odds(bench, hidden)
            late[number, place] = before - _odds(bench, _held(bench.model, hidden, own / sizes))
    return Repair(starts, late, total, random)


def depths(model: LoadedModel) -> tuple[Layer, ...]:
    """Return up to ``DEPTHS`` layers, spread evenly from ``embedding`` to the last block."""
    layers: tuple[Layer, ...] = ("embedding", *range(model.anatomy.n_layers))
    count = min(DEPTHS, len(layers))
    places = np.linspace(0, len(layers) - 1, count).round().astype(int).tolist()
    return tuple(layers[place] for place in places)


def _untouched(bench: Bench) -> tuple[Float64[np.ndarray, " prompt"], Float64[Tensor, " prompt"]]:
    hidden, sizes = _seen(bench.model, bench.subset.harmful)
    return _odds(bench, hidden), sizes


@torch.no_grad()
def _odds(bench: Bench, hidden: Float64[Tensor, "prompt d_model"]) -> Float64[np.ndarray, " p"]:
    states = hidden.to(bench.head.weight.dtype)
    found = [
        log_odds(bench.head.log_probabilities(part), bench.tokens.ids).cpu()
        for part in chunks(states)
    ]
    return torch.cat(found).numpy()


@torch.no_grad()
def _seen(
    model: LoadedModel, encoded: Encoded
) -> tuple[Float64[Tensor, "prompt d_model"], Float64[Tensor, " prompt"]]:
    """Return what the final norm makes of every last token, and what it divides there by."""
    norm = _final_norm(model)
    given: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> None:
        given[:] = [args[0]]

    hidden = torch.empty(len(encoded), model.anatomy.d_model, dtype=torch.float64)
    sizes = torch.ones(len(encoded), dtype=torch.float64)
    handles = [] if norm is None else [norm.register_forward_pre_hook(keep)]
    with hooked(handles), without_progress():
        for batch, output in forward_batches(model, encoded, task="intervene"):
            rows, last = list(batch.rows), batch.lengths.to(output.device) - 1
            place = torch.arange(len(rows), device=output.device), last
            hidden[rows] = output[place].double().cpu()
            if norm is not None:
                sizes[rows] = _size(norm, given[0].reshape(output.shape)[place]).cpu()
    return hidden, sizes


def _held(
    model: LoadedModel,
    hidden: Float64[Tensor, "prompt d_model"],
    longer: Float64[Tensor, " prompt"],
) -> Float64[Tensor, "prompt d_model"]:
    """Return ``hidden`` as it is where the final norm divides by less: each row times ``longer``.

    The bias of the norm stays as it is.
    """
    bias = getattr(_final_norm(model), "bias", None)
    shift = torch.zeros(()) if bias is None else bias.detach().double().cpu()
    return (hidden - shift) * longer[:, None] + shift


def _final_norm(model: LoadedModel) -> nn.Module | None:
    path = model.anatomy.final_norm
    return None if path is None else model.module.get_submodule(path)


def _size(norm: nn.Module, stream: Float[Tensor, "row d_model"]) -> Float64[Tensor, " row"]:
    """Return what ``norm`` divides each row by."""
    wide = stream.double()
    if isinstance(norm, nn.LayerNorm):
        wide = wide - wide.mean(dim=-1, keepdim=True)
    return wide.square().mean(dim=-1).sqrt()
