"""Two models on the same prompts: where each is looked at, and the maps between their streams."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.intervening import selected
from obliteratus.analysis.kinship import Kinship
from obliteratus.analysis.neutral_text import passages, streams_at
from obliteratus.analysis.stream_map import StreamMap, learn_map
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.probe.activations import Activations, PromptClass
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Pair:
    """A model whose direction is asked about, and another; each at one layer and position.

    ``own`` is the other's mean difference δ there, ``why`` says why it is looked at there.
    """

    bench: Bench
    other: Bench
    layer: Layer
    other_layer: Layer
    position: int
    other_position: int
    own: Float64[np.ndarray, " d_other"]
    why: str

    @property
    def harmless_means(self) -> dict[Layer, Float64[Tensor, " d_other"]]:
        """The mean of the other's harmless prompts at every layer."""
        seen = self.other.activations
        row = seen.positions.index(self.other_position)
        return {layer: each.mean[row] for layer, each in seen.harmless.moments.items()}

    def streams(self, side: PromptClass) -> tuple[np.ndarray, np.ndarray]:
        """Return the fit prompts of a class in both models, row i of both the same prompt."""
        here = kept(self.bench.activations, side, self.layer, self.position)
        return here, kept(self.other.activations, side, self.other_layer, self.other_position)


@dataclass(frozen=True)
class Learned:
    """Maps learned on neutral text: ``there`` to the other model and ``back`` from it.

    ``streams`` are those of the text in the first model. ``document`` says which passages belong
    together, ``sha256`` which text it was.
    """

    there: StreamMap
    back: StreamMap
    streams: Float64[np.ndarray, "passage d_model"]
    document: Int64[np.ndarray, " passage"]
    sha256: str

    def contrasts(
        self, count: int, rng: np.random.Generator
    ) -> list[Float64[np.ndarray, " d_model"]]:
        """Return ``count`` mean differences of the text, split in two at random.

        A map says something of what its text varies along, and blows up all else: what a direction
        that is uniform in the stream becomes is mostly made of where the text hardly moves.
        """
        half = np.arange(len(self.streams)) % 2 == 0
        found: list[Float64[np.ndarray, " d_model"]] = []
        for _ in range(count):
            first = rng.permutation(half)
            found.append(self.streams[first].mean(axis=0) - self.streams[~first].mean(axis=0))
        return found


def pair_of(bench: Bench, other: Bench, kin: Kinship) -> Pair:
    """Return both models with the layers at which they are compared.

    The first is looked at where its direction was read. Of one base the other is looked at there
    too; otherwise where its own direction was read, and if it has none, at the same share of its
    depth.
    """
    layer, _ = selected(bench.directions)
    positions = bench.activations.positions
    position = bench.directions.position
    if position is None:
        position = max(positions)
    if kin.is_same_base:
        return _pair(bench, other, (layer, layer), (position, position), "the same layer, one base")
    try:
        theirs, _ = selected(other.directions)
        place = other.directions.position
        why = "where its own direction was read"
    except (DirectionError, MeasurementError) as error:
        depth = 0.0 if layer == "embedding" else (layer + 1) / bench.model.anatomy.n_layers
        last = other.model.anatomy.n_layers
        theirs, place = max(0, round(depth * last) - 1), None
        why = f"the same share of its depth; no direction of its own was selected ({error})"
    found = max(other.activations.positions) if place is None else place
    return _pair(bench, other, (layer, theirs), (position, found), why)


def learn(pair: Pair) -> Learned:
    """Run neutral text through both models and learn the maps between their streams.

    Raises:
        MeasurementError: see ``passages`` and ``streams_at``.
    """
    text = passages(pair.bench.settings)
    here = streams_at(pair.bench, text.texts, pair.layer, pair.position).numpy()
    there = streams_at(pair.other, text.texts, pair.other_layer, pair.other_position).numpy()
    seed, permutations = pair.bench.seed, pair.bench.settings.permutations
    maps = [
        learn_map(one, another, text.document, permutations=permutations, seed=seed)
        for one, another in ((here, there), (there, here))
    ]
    return Learned(maps[0], maps[1], here.astype(np.float64), text.document, text.sha256)


def kept(
    activations: Activations, side: PromptClass, layer: Layer, position: int
) -> Float64[np.ndarray, "prompt d_model"]:
    """Return every prompt of a class at one place."""
    stream = getattr(activations, side).kept[layer]
    return stream[:, activations.positions.index(position)].double().numpy()


def _pair(
    bench: Bench, other: Bench, layers: tuple[Layer, Layer], positions: tuple[int, int], why: str
) -> Pair:
    seen = other.activations
    if positions[1] not in seen.positions:
        raise MeasurementError(
            f"position {positions[1]} of {other.model.source.asked} was not probed, only "
            f"{seen.positions}. Set probe.positions=last."
        )
    own = seen.difference(layers[1])[seen.positions.index(positions[1])].numpy()
    return Pair(bench, other, *layers, *positions, own, why)
