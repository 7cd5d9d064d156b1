"""Where an analysis of one place looks: where the direction was chosen by what it controls."""

from dataclasses import dataclass

from obliteratus.analysis.bench import Bench
from obliteratus.directions.samples import samples_at
from obliteratus.directions.separation import separation
from obliteratus.errors import DirectionError
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Place:
    """One layer and position, and in words why it is this one."""

    layer: Layer
    position: int
    reason: str


def chosen_place(bench: Bench) -> Place:
    """Return where DISTILL read the one direction that it selected by its effect on the model.

    Where it selected none, or one for each block, it is the block whose classes are furthest apart
    at the last position (:func:`obliteratus.directions.separation.separation`), which shows where
    harm can be read and not what the model does with it; ``reason`` says so.

    Raises:
        DirectionError: activations of single prompts were not kept, or are fewer than 8 of a class.
    """
    try:
        directions = bench.directions
    except DirectionError as error:
        return _clearest(bench, f"no direction was selected ({error})")
    if directions.source_layer is None or directions.position is None:
        return _clearest(bench, "every block has a direction of its own")
    return Place(directions.source_layer, directions.position, "selected by its effect on refusal")


def _clearest(bench: Bench, why: str) -> Place:
    activations = bench.activations
    position = max(activations.positions)
    blocks = [layer for layer in activations.layers if layer != "embedding"]

    def apart(layer: Layer) -> float:
        return separation(samples_at(activations, layer, position), seed=bench.seed).value

    layer = max(blocks, key=apart)
    return Place(layer, position, f"largest separation of the classes; {why}")
