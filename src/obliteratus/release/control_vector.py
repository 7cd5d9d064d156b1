"""Directions as a control vector file of llama.cpp: what it adds to the stream, layer by layer.

llama.cpp adds the tensor ``direction.<il>`` to the output of block il, counted from 0: our layer
il, at every token (``build_cvec``, after the residual sum of the block). It has no vector for block
0 and none for the embedding. A control vector only adds: it moves every token by the same amount,
while an edit removes what each token has. It is no ablation, and refusal may survive it.
"""

from pathlib import Path

import gguf
import numpy as np
import torch

from obliteratus.directions.directions import Directions
from obliteratus.errors import DirectionError
from obliteratus.events import Deviation, DeviationRecorded, emit
from obliteratus.shapes import Layer
from obliteratus.store import atomic_file

ARCHITECTURE = "controlvector"
FIRST_BLOCK = 1  # llama.cpp: "there's never a tensor for layer 0"
MEANING = (
    "+1 adds the distance of the class means along the direction, towards {noun}; -1 takes it "
    "away. Additive only: nothing is removed."
)


def noun_of(directions: Directions) -> str:
    """Return what the directions are of: refusal, where they do not tell."""
    return str(directions.provenance.get("noun", "refusal"))


def export_control_vector(
    directions: Directions, path: Path, *, model_type: str | None = None, force: bool = False
) -> tuple[tuple[int, ...], tuple[Deviation, ...]]:
    """Write the first direction of each layer, times ‖δ‖ of that layer, as a GGUF file.

    ``direction.<il>`` = +‖δ_il‖ r_il in float32, +r pointing towards the behaviour:
    ``--control-vector FILE`` adds one ‖δ‖ and ``--control-vector-scaled FILE:-1`` takes one away. A
    direction that was selected at one layer is written for that layer alone: adding it at all of
    them would add it many times over. Where each layer has its own, all are written, and
    ``--control-vector-layer-range`` chooses among them. ``model_type`` names the architecture in
    the file; llama.cpp checks the width alone. Equal directions give equal bytes.

    Returns:
        The layers written, and what a control vector could not hold: further directions of a layer,
        block 0 and the embedding.

    Raises:
        DirectionError: no layer is left, or a layer has no scale.
        StorageError: ``path`` exists and ``force`` is false, or cannot be written.
    """
    wanted: list[Layer] = (
        list(directions.basis) if directions.source_layer is None else [directions.source_layer]
    )
    layers = tuple(sorted(layer for layer in wanted if layer != "embedding" and layer > 0))
    if not layers:
        raise DirectionError(
            f"the direction was selected at layer {wanted[0] if wanted else '(none)'}, and "
            f"llama.cpp adds control vectors from block {FIRST_BLOCK} on. Steer with hooks, or use "
            "the edited model."
        )
    vectors = {layer: _vector(directions, layer) for layer in layers}
    deviations = _deviations(directions, wanted, layers)
    with atomic_file(path, replace=force) as work:
        _write(work, vectors, model_type, noun_of(directions))
    for deviation in deviations:
        emit(DeviationRecorded(deviation))
    return layers, deviations


def _vector(directions: Directions, layer: int) -> np.ndarray:
    scale = directions.scale.get(layer, 0.0)
    if not scale > 0:
        raise DirectionError(
            f"layer {layer} has no scale ‖δ‖, so its vector has no length. Distill it again."
        )
    return (scale * directions.basis[layer][0]).to(torch.float32).numpy()


def _deviations(
    directions: Directions, wanted: list[Layer], layers: tuple[int, ...]
) -> tuple[Deviation, ...]:
    found: list[Deviation] = []
    left_out = [str(layer) for layer in wanted if layer not in layers]
    if left_out:
        found.append(
            Deviation(
                "export",
                f"directions of {len(wanted)} layers",
                f"{len(layers)} of them, without {', '.join(left_out)}",
                f"llama.cpp adds control vectors from block {FIRST_BLOCK} on",
            )
        )
    rank = max(len(directions.basis[layer]) for layer in layers)
    if rank > 1:
        found.append(
            Deviation(
                "export",
                f"{rank} directions",
                "the first of each layer",
                "a control vector adds one vector; the others have no length of their own",
            )
        )
    return tuple(found)


def _write(path: Path, vectors: dict[int, np.ndarray], model_type: str | None, noun: str) -> None:
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    if model_type is not None:
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
    writer.add_description(MEANING.format(noun=noun))
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
