"""What a removal brings about: r written again by later layers, and directions that were not there.

With r out of the writes up to a layer, r is *written again* in so far as the contrast of both
classes along it comes back behind that layer. With r out of every write, a direction is *new* in so
far as the contrast grew by it, g = δ' − (I − r rᵀ) δ, and it is self-repair only if taking it out
as well lowers refusal further. A contrast that was there before separates the classes after the
removal as well; that it does is no repair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.intervening import scores
from obliteratus.analysis.lens import last_streams
from obliteratus.analysis.matched import energy_matched
from obliteratus.analysis.products import products
from obliteratus.analysis.resampling import ends, prediction_bound, weights
from obliteratus.analysis.self_repair import beyond
from obliteratus.events import without_progress
from obliteratus.models.chat import Encoded, encode
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.removal import everywhere
from obliteratus.operator.steering import steering
from obliteratus.prompts.spread import limited
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

RESAMPLES = 400


@dataclass(frozen=True)
class Reaction:
    """What was measured; vector 0 is the direction, the others are its nulls.

    ``again`` is the contrast along each vector behind a partial edit, summed over the later layers,
    for every pair, and ``whole`` that along r without an edit. ``grown`` holds ‖g‖² of every vector
    and layer without noise, ``resampled`` that of vector 0 in bootstrap samples, both in units of
    the largest ‖δ‖². ``further`` are falls of the refusal log-odds of harmful prompts beyond those
    by r alone: row 0 with the new direction out as well, the others with random ones.
    """

    again: Float64[np.ndarray, "vector pair"]
    whole: Float64[np.ndarray, " pair"]
    grown: Float64[np.ndarray, "vector layer"]
    resampled: Float64[np.ndarray, "sample layer"]
    further: Float64[np.ndarray, "vector prompt"]


def reaction_estimates(reaction: Reaction, *, seed: int) -> dict[str, Estimate]:
    """Return the share of r that is written again, the new direction's size, and what it does."""
    whole = float(reaction.whole.mean())
    n = len(reaction.whole)
    bound = prediction_bound(np.abs(reaction.again[1:].mean(axis=1))) / max(whole, 1e-12)
    drawn = weights(n, np.random.default_rng(seed))
    low, high = ends((drawn @ reaction.again[0]) / np.maximum(drawn @ reaction.whole, 1e-12))
    again = float(reaction.again[0].mean()) / max(whole, 1e-12)
    layer = int(reaction.grown[0].argmax())
    size = float(reaction.grown[0, layer])
    size_low, size_high = ends(reaction.resampled[:, layer])
    most = prediction_bound(reaction.grown[1:].max(axis=1))
    return {
        "written_again": Estimate(
            again, (float(low), float(high)), n, bound, seed, _verdict(low, high, bound)
        ),
        "new_direction": Estimate(
            size,
            (min(size, float(size_low)), max(size, float(size_high))),
            n,
            most,
            seed,
            _verdict(size_low, size_high, most),
        ),
        "new_direction_removed": beyond(reaction.further, seed),
    }


def _verdict(low: np.ndarray, high: np.ndarray, bound: float) -> Verdict:
    if float(low) > bound:
        return "supported"
    return "not_supported" if float(high) < bound else "undetermined"


def measure_reaction(
    bench: Bench, rows: Sequence[Float64[Tensor, " d_model"]], layer: Layer, *, seed: int
) -> Reaction:
    """Remove each of ``rows`` in part (up to ``layer``) and everywhere, and look at both classes.

    The new direction is taken from fit prompts and tried on select prompts.
    """
    model = bench.model
    fit = limited(bench.splits.fit, bench.settings.prompts)
    sides = [
        encode(model, [prompt.text for prompt in side], system=bench.system)
        for side in (fit.harmful, fit.harmless)
    ]
    untouched = _contrast(bench, sides, None, ())
    first = 0 if layer == "embedding" else layer + 1
    upto: tuple[Layer, ...] = ("embedding", *range(first))
    whole: tuple[Layer, ...] = ("embedding", *range(model.anatomy.n_layers))
    unit = max(_squared(untouched).max(), 1e-12)
    again, grown, growth = list[np.ndarray](), list[np.ndarray](), list[Tensor]()
    for row in rows:
        part = _contrast(bench, sides, row, upto)[:, first + 1 :]
        again.append((part @ row).sum(dim=1).numpy())
        left = untouched - (untouched @ row)[..., None] * row
        growth.append(_contrast(bench, sides, row, whole) - left)
        grown.append(_squared(growth[-1]) / unit)
    counts = weights(len(untouched), np.random.default_rng(seed), RESAMPLES) * len(untouched)
    resampled = _squared(growth[0], counts) / unit
    place = int(grown[0].argmax())
    new = growth[0][:, place].mean(dim=0)
    return Reaction(
        np.array(again),
        (untouched[:, first + 1 :] @ rows[0]).sum(dim=1).numpy(),
        np.array(grown),
        resampled,
        _further(bench, rows[0], new, count=len(rows) - 1, seed=seed),
    )


def _further(
    bench: Bench, row: Tensor, new: Tensor, *, count: int, seed: int
) -> Float64[np.ndarray, "vector prompt"]:
    generator = torch.Generator().manual_seed(seed)
    second = orthonormalise(torch.stack([row, new]))[1]
    others = [energy_matched(bench.model, second, generator) for _ in range(count)]
    alone = _without(bench, row[None])
    return np.array(
        [
            alone - _without(bench, orthonormalise(torch.stack([row, other])))
            for other in (second, *others)
        ]
    )


def _without(bench: Bench, rows: Tensor) -> Float64[np.ndarray, " prompt"]:
    with steering(bench.model, everywhere(bench.model, rows), kind="write_projection"):
        return scores(bench.model, bench.head, bench.tokens, bench.subset.harmful)


def _contrast(
    bench: Bench, sides: Sequence[Encoded], row: Tensor | None, layers: Sequence[Layer]
) -> Float64[Tensor, "pair layer d_model"]:
    """Return harmful − harmless streams, row by row, with ``row`` out of the writes of ``layers``.

    Of unpaired classes row i goes with row i: the mean is that of the classes all the same.
    """
    n = min(map(len, sides))
    with without_progress():
        if row is None:
            streams = [last_streams(bench.model, side) for side in sides]
        else:
            basis = dict.fromkeys(layers, row[None])
            with steering(bench.model, basis, kind="write_projection"):
                streams = [last_streams(bench.model, side) for side in sides]
    return streams[0][:n].double() - streams[1][:n].double()


def _squared(
    rows: Float64[Tensor, "pair layer d_model"],
    counts: Float64[np.ndarray, "sample pair"] | None = None,
) -> Float64[np.ndarray, "*batch layer"]:
    """Return ‖mean‖² at every layer without the noise of single pairs, never below 0."""
    found: list[np.ndarray] = []
    for layer in rows.unbind(dim=1):
        gram = (layer @ layer.T).numpy()
        given = np.ones((1, len(gram))) if counts is None else counts
        inner = np.nan_to_num(products(gram, given[:, None])[:, 0, 0])
        found.append(np.maximum(inner, 0.0))
    stacked = np.stack(found, axis=-1)
    return stacked[0] if counts is None else stacked
