"""Does the model make up for a direction that is taken out? Compensation CE = DE − TE.

The total effect TE is the fall of the refusal log-odds with r out of every write. The direct effect
DE is what readers of r lose before anything can answer: r is taken out from one layer on only, and
what earlier layers wrote is that of an untouched run; of all layers the one with the largest fall
counts, chosen on one half of the prompts and read on the other. Both with the scale of the final
norm held at its untouched value: what the norm alone adds, because a shorter stream is divided by
less, is split off (arXiv 2402.15390). That harm can still be read after the removal is no repair.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.resampling import SIGNIFICANT, ends, prediction_bound, weights
from obliteratus.events import without_progress
from obliteratus.measure.head import chunks
from obliteratus.measure.log_odds import log_odds
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import hooked
from obliteratus.operator.removal import everywhere
from obliteratus.operator.steering import steering
from obliteratus.probe.forward import forward_batches
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.permutation import sign_flip

DEPTHS = 12
"""Layers from which on r is taken out; of deeper models these are spread evenly."""
NEGLIGIBLE = 0.25
"""Log-odds: compensation that surely stays below is as good as none."""


@dataclass(frozen=True)
class Repair:
    """Falls of the refusal log-odds; vector 0 is the direction, the others are its nulls.

    ``total`` is with r out of every write, ``kept`` the same with the final norm's scale held, and
    ``late`` with r out from each of ``starts`` on, scale held.
    """

    starts: tuple[Layer, ...]
    total: Float64[np.ndarray, "vector prompt"]
    kept: Float64[np.ndarray, "vector prompt"]
    late: Float64[np.ndarray, "vector start prompt"]

    @property
    def direct(self) -> Float64[np.ndarray, "vector prompt"]:
        """DE of every vector and prompt, the layer chosen on the other half of the prompts."""
        found = np.empty_like(self.kept)
        for half in (0, 1):
            best = self.late[:, :, 1 - half :: 2].mean(axis=2).argmax(axis=1)
            found[:, half::2] = self.late[np.arange(len(best)), best][:, half::2]
        return found


def repair_estimates(repair: Repair, *, seed: int) -> dict[str, Estimate]:
    """Return DE, the compensation by parts, its share of DE, and what the norm alone gives back.

    Compensation is supported beyond what a further random direction of equal energy stays below.
    The share is 0 to 1 where r acts; it is undetermined where DE is not beyond random itself.

    Raises:
        MeasurementError: fewer than two prompts, or fewer than three random directions.
    """
    direct = repair.direct
    by_parts, by_norm = direct - repair.kept, repair.kept - repair.total
    acts = beyond(direct, seed)
    parts, norm = (beyond(each, seed) for each in (by_parts, by_norm))
    if acts.verdict != "supported":
        parts = replace(parts, verdict="undetermined")
    drawn = weights(direct.shape[1], np.random.default_rng(seed))
    ratios = (drawn @ by_parts[0]) / np.maximum(drawn @ direct[0], NEGLIGIBLE)
    low, high = ends(ratios)
    length = max(float(direct[0].mean()), NEGLIGIBLE)
    share = Estimate(
        float(by_parts[0].mean()) / length,
        (float(low), float(high)),
        n=direct.shape[1],
        null=float(parts.null or 0.0) / length,
        seed=seed,
        verdict=parts.verdict,
    )
    return {
        "direct_effect": acts,
        "repair_by_parts": parts,
        "repair_share": share,
        "repair_by_norm": norm,
    }


def beyond(values: Float64[np.ndarray, "vector prompt"], seed: int) -> Estimate:
    """Return the mean of row 0, held against what a further row like the others stays below."""
    bound = prediction_bound(values[1:].mean(axis=1))
    test = sign_flip(values[0] - bound, seed=seed)
    low, high = (end + bound for end in test.effect.interval)
    value = float(values[0].mean())
    verdict: Verdict = "undetermined"
    if value > max(bound, NEGLIGIBLE) and test.p_value < SIGNIFICANT:
        verdict = "supported"
    elif high < max(bound, NEGLIGIBLE):
        verdict = "not_supported"
    return replace(test.effect, value=value, interval=(low, high), null=bound, verdict=verdict)


def measure_repair(bench: Bench, rows: Sequence[Float64[Tensor, " d_model"]]) -> Repair:
    """Take each of ``rows`` out of the bench's harmful prompts: everywhere, and from layers on."""
    encoded = bench.subset.harmful
    starts = depths(bench.model)
    before, sizes = _seen(bench, encoded, None)
    total, kept, late = list[np.ndarray](), list[np.ndarray](), list[list[np.ndarray]]()
    for row in rows:
        with removed_from(bench.model, row, "embedding"):
            plain, _ = _seen(bench, encoded, None)
            held, _ = _seen(bench, encoded, sizes)
        total.append(before - plain)
        kept.append(before - held)
        falls = list[np.ndarray]()
        for start in starts:
            with removed_from(bench.model, row, start):
                falls.append(before - _seen(bench, encoded, sizes)[0])
        late.append(falls)
    return Repair(starts, np.array(total), np.array(kept), np.array(late))


def depths(model: LoadedModel) -> tuple[Layer, ...]:
    """Return up to ``DEPTHS`` layers, spread evenly over ``embedding`` and the blocks."""
    layers: tuple[Layer, ...] = ("embedding", *range(model.anatomy.n_layers))
    count = min(DEPTHS, len(layers))
    places = np.linspace(0, len(layers) - 1, count).round().astype(int).tolist()
    return tuple(layers[place] for place in places)


@contextlib.contextmanager
def removed_from(
    model: LoadedModel, row: Float64[Tensor, " d_model"], start: Layer
) -> Generator[None]:
    """Take ``row`` out of the stream at ``start`` and out of every write behind it."""
    basis = everywhere(model, row[None])
    first = -1 if start == "embedding" else start
    later = {layer: rows for layer, rows in basis.items() if layer != "embedding" and layer > first}
    with contextlib.ExitStack() as stack:
        stack.enter_context(steering(model, {start: row[None]}, kind="projection"))
        if later:
            stack.enter_context(steering(model, later, kind="write_projection"))
        yield


@torch.no_grad()
def _seen(
    bench: Bench, encoded: Encoded, sizes: Float64[Tensor, " prompt"] | None
) -> tuple[Float64[np.ndarray, " prompt"], Float64[Tensor, " prompt"]]:
    """Return log-odds and what the final norm divides by; with ``sizes`` it divides by those."""
    model = bench.model
    path = model.anatomy.final_norm
    norm = None if path is None else model.module.get_submodule(path)
    given: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> None:
        given[:] = [args[0]]

    hidden = torch.empty(len(encoded), model.anatomy.d_model, dtype=torch.float64)
    own = torch.ones(len(encoded), dtype=torch.float64)
    handles = [] if norm is None else [norm.register_forward_pre_hook(keep)]
    with hooked(handles), without_progress():
        for batch, output in forward_batches(model, encoded, task="intervene"):
            rows, last = list(batch.rows), batch.lengths.to(output.device) - 1
            place = torch.arange(len(rows), device=output.device), last
            hidden[rows] = output[place].double().cpu()
            if norm is not None:
                own[rows] = _size(norm, given[0].reshape(output.shape)[place]).cpu()
    if sizes is not None and norm is not None:
        bias = getattr(norm, "bias", None)
        shift = torch.zeros(()) if bias is None else bias.detach().double().cpu()
        hidden = (hidden - shift) * (own / sizes)[:, None] + shift
    states = hidden.to(bench.head.weight.dtype)
    odds = [
        log_odds(bench.head.log_probabilities(part), bench.tokens.ids).cpu()
        for part in chunks(states)
    ]
    return torch.cat(odds).numpy(), own


def _size(norm: nn.Module, stream: Float[Tensor, "row d_model"]) -> Float64[Tensor, " row"]:
    """Return what ``norm`` divides each row by."""
    wide = stream.double()
    if isinstance(norm, nn.LayerNorm):
        wide = wide - wide.mean(dim=-1, keepdim=True)
    return wide.square().mean(dim=-1).sqrt()
