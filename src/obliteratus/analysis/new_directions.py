"""What a removal brings about: r written again by later layers, and directions that take over.

With r out of the writes up to a layer, r is *written again* in so far as the contrast of both
classes along it comes back behind that layer. With r out of every write the contrast δ becomes δ',
and what is new has made it longer: ‖δ'‖² − ‖(I − r rᵀ) δ‖², which is the growth of the squared
contrast along g = δ' − (I − r rᵀ) δ. What readers of r no longer write makes it shorter, and what
separated the classes before does so still and adds nothing: harm that stays decodable is no repair.
A new direction *takes over* if it matters more without r than with it: taken out beside r it lowers
refusal by more than taken out alone.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import beyond
from obliteratus.analysis.intervening import scores
from obliteratus.analysis.lens import last_streams, layers_of
from obliteratus.analysis.products import products
from obliteratus.analysis.resampling import ends, prediction_bound, weights
from obliteratus.analysis.turned import Change, ablated, out, turned
from obliteratus.events import without_progress
from obliteratus.models.chat import Encoded, encode
from obliteratus.operator.bases import orthonormalise
from obliteratus.prompts.spread import limited
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate, Verdict

RESAMPLES = 400
NEGLIGIBLE = 0.05
"""Share of a contrast: what surely stays below is as good as none."""


@dataclass(frozen=True)
class Reaction:
    """What was measured; vector 0 is r, the others are its nulls.

    ``again`` is what later layers add to the contrast along each vector behind a partial removal of
    r, summed over these layers, for every pair, and ``whole`` the contrast along r without one.
    ``grown`` is by how much ‖δ'‖² is longer than that of a δ which nothing but the change has
    changed, for every vector and layer, without noise, ``resampled`` that of vector 0 in bootstrap
    samples, both in units of the largest ‖δ‖². ``further`` is by how much more the refusal log-odds
    of harmful prompts fall with a second change beside the removal of r than with it alone: row 0
    takes the new direction out, the others are turned; None where nothing has grown.
    """

    again: Float64[np.ndarray, "vector pair"]
    whole: Float64[np.ndarray, " pair"]
    grown: Float64[np.ndarray, "vector layer"]
    resampled: Float64[np.ndarray, "sample layer"]
    further: Float64[np.ndarray, "vector prompt"] | None


def reaction_estimates(reaction: Reaction, *, seed: int) -> dict[str, Estimate]:
    """Return the share of r that is written again, how much is new, and whether that takes over.

    The share is given where r surely tells the classes apart behind the edit, the last where
    something new was there to be taken out.
    """
    found: dict[str, Estimate] = {}
    n = len(reaction.whole)
    drawn = weights(n, np.random.default_rng(seed))
    whole = drawn @ reaction.whole
    if float(ends(whole)[0]) > 0:
        length = float(reaction.whole.mean())
        bound = prediction_bound(np.abs(reaction.again[1:].mean(axis=1))) / length
        low, high = ends((drawn @ reaction.again[0]) / whole)
        again = float(reaction.again[0].mean()) / length
        found["written_again"] = _held_against(again, (low, high), n, bound, seed)
    layer = int(reaction.grown[0].argmax())
    most = prediction_bound(reaction.grown[1:].max(axis=1))
    size = float(reaction.grown[0, layer])
    found["new_direction"] = _held_against(size, ends(reaction.resampled[:, layer]), n, most, seed)
    if reaction.further is not None:
        found["new_direction_takes_over"] = beyond(reaction.further, seed)
    return found


def _held_against(
    value: float, interval: tuple[np.ndarray, np.ndarray], n: int, bound: float, seed: int
) -> Estimate:
    low, high = (float(end) for end in interval)
    verdict: Verdict = "undetermined"
    if low > max(bound, NEGLIGIBLE):
        verdict = "supported"
    elif high < max(bound, NEGLIGIBLE):
        verdict = "not_supported"
    return Estimate(value, (min(low, value), max(high, value)), n, bound, seed, verdict)


def measure_reaction(
    bench: Bench, changes: Sequence[Change], layer: Layer, *, seed: int
) -> Reaction:
    """Make each of ``changes`` everywhere, and the first up to ``layer``; look at both classes.

    The first is the removal of r. The new direction is taken from fit prompts and tried on select
    prompts.
    """
    model, row = bench.model, changes[0].read[0]
    fit = limited(bench.splits.fit, bench.settings.prompts)
    sides = [
        encode(model, [prompt.text for prompt in side], system=bench.system)
        for side in (fit.harmful, fit.harmless)
    ]
    untouched = _contrast(bench, sides, None)
    here = layers_of(model).index(layer)
    part = _contrast(bench, sides, changes[0], layers_of(model)[: here + 1])
    later = part[:, here + 1 :] - part[:, here, None]
    unit = max(float(_squared(untouched).max()), 1e-12)
    counts = weights(len(untouched), np.random.default_rng(seed), RESAMPLES) * len(untouched)
    grown, resampled, growth = list[np.ndarray](), np.empty(0), untouched
    for number, change in enumerate(changes):
        before, after = change.of(untouched), _contrast(bench, sides, change)
        grown.append((_squared(after) - _squared(before)) / unit)
        if number == 0:
            growth = after - before
            resampled = (_squared(after, counts) - _squared(before, counts)) / unit
    place = int(grown[0].argmax())
    further = None
    if grown[0][place] > prediction_bound(np.array(grown[1:]).max(axis=1)):
        new = orthonormalise(torch.stack([row, growth[:, place].mean(dim=0)]))[1]
        generator = torch.Generator().manual_seed(seed)
        others = [turned(new, generator, beside=row) for _ in changes[1:]]
        further = taken_over(bench, changes[0], [out(new), *others])
    return Reaction(
        np.array([(later @ each.write[0]).sum(dim=1).numpy() for each in changes]),
        (untouched[:, here + 1 :] @ row).sum(dim=1).numpy(),
        np.array(grown),
        resampled,
        further,
    )


@torch.no_grad()
def taken_over(
    bench: Bench, first: Change, seconds: Sequence[Change]
) -> Float64[np.ndarray, "vector prompt"]:
    """Return by how much more each of ``seconds`` lowers refusal beside ``first`` than alone.

    It is below 0 where both take away the same thing.
    """

    def left(change: Change) -> Float64[np.ndarray, " prompt"]:
        with ablated(bench.model, change):
            return scores(bench.model, bench.head, bench.tokens, bench.subset.harmful)

    untouched = scores(bench.model, bench.head, bench.tokens, bench.subset.harmful)
    alone = left(first)
    return np.array(
        [(alone - left(first.beside(each))) - (untouched - left(each)) for each in seconds]
    )


def _contrast(
    bench: Bench,
    sides: Sequence[Encoded],
    change: Change | None,
    layers: Iterable[Layer] | None = None,
) -> Float64[Tensor, "pair layer d_model"]:
    """Return harmful − harmless streams, row by row, with ``change`` in the writes of ``layers``.

    Of unpaired classes row i goes with row i: the mean is that of the classes all the same.
    """
    n = min(map(len, sides))
    made = contextlib.nullcontext() if change is None else ablated(bench.model, change, layers)
    with without_progress(), made:
        streams = [last_streams(bench.model, side) for side in sides]
    return streams[0][:n].double() - streams[1][:n].double()


def _squared(
    rows: Float64[Tensor, "pair layer d_model"],
    counts: Float64[np.ndarray, "sample pair"] | None = None,
) -> Float64[np.ndarray, "*batch layer"]:
    """Return ‖mean‖² at every layer without the noise of single pairs, which may be below 0."""
    given = np.ones((1, len(rows))) if counts is None else counts
    grams = [(layer @ layer.T).numpy() for layer in rows.unbind(dim=1)]
    found = [np.nan_to_num(products(gram, given[:, None])[:, 0, 0]) for gram in grams]
    stacked = np.stack(found, axis=-1)
    return stacked[0] if counts is None else stacked
