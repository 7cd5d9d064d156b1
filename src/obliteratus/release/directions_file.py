"""``directions.safetensors``: ``layer.<i>`` and ``embedding`` -> [rank, d_model], and a header.

The filters of an oblique edit are under the same names with ``filter.`` in front.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.errors import StorageError
from obliteratus.operator.removal import SiteStrengths
from obliteratus.probe.files import layer_name
from obliteratus.shapes import Component, Layer
from obliteratus.statistics.estimate import Estimate

KIND = "obliteratus.directions"
VERSION = 3
"""2: the strength found, and the mean of affine edits. 3: knobs, filters, strengths per layer."""
MEAN = "mean"  # the tensor beside the layers
FILTER = "filter."


def save_directions(directions: Directions, path: Path) -> None:
    """Write ``directions``; equal directions give equal bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    facts = {
        "kind": KIND,
        "version": VERSION,
        "method": directions.method,
        "knobs": dict(directions.knobs),
        "source_layer": directions.source_layer,
        "position": directions.position,
        "strength": directions.strength,
        "strengths": _as_json(directions.strengths),
        "strong_layers": list(directions.strong_layers),
        "scale": {layer_name(layer): value for layer, value in directions.scale.items()},
        "reliability": {name: asdict(value) for name, value in directions.reliability.items()},
        "provenance": dict(directions.provenance),
    }
    tensors = {layer_name(layer): rows.clone() for layer, rows in directions.basis.items()}
    tensors |= {
        FILTER + layer_name(layer): rows.clone() for layer, rows in directions.filters.items()
    }
    if directions.mean is not None:
        tensors[MEAN] = directions.mean.clone()
    header = {"directions": json.dumps(facts, sort_keys=True)}
    try:
        save_file(tensors, path, metadata=header)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the directions cannot be written to {path}: {error}") from error


def load_directions(path: Path) -> Directions:
    """Read what :func:`save_directions` wrote.

    Raises:
        StorageError: the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the directions at {path} cannot be read: {error}") from error
    mean = tensors.pop(MEAN, None)
    filters = {name: tensors.pop(name) for name in list(tensors) if name.startswith(FILTER)}
    return Directions(
        basis=_by_layer(tensors),
        filters=_by_layer({name.removeprefix(FILTER): rows for name, rows in filters.items()}),
        scale={_layer(name): float(value) for name, value in facts["scale"].items()},
        method=facts["method"],
        source_layer=facts["source_layer"],
        position=facts["position"],
        strength=facts["strength"],
        strengths=_from_json(facts["strengths"]),
        mean=None if mean is None else mean.to(torch.float64),
        strong_layers=tuple(facts["strong_layers"]),
        knobs=facts["knobs"],
        reliability={
            name: Estimate.from_json(value) for name, value in facts["reliability"].items()
        },
        provenance=facts["provenance"],
    )


def _as_json(strengths: SiteStrengths | None) -> dict[str, dict[str, list[float]]] | None:
    if strengths is None:
        return None
    return {
        layer_name(layer): {component: values.tolist() for component, values in parts.items()}
        for layer, parts in strengths.items()
    }


def _from_json(stored: dict[str, dict[Component, list[float]]] | None) -> SiteStrengths | None:
    if stored is None:
        return None
    return {
        _layer(name): {
            component: torch.tensor(values, dtype=torch.float64)
            for component, values in parts.items()
        }
        for name, parts in stored.items()
    }


def _facts(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(metadata.get("directions", "{}"))
    if facts.get("kind") != KIND or facts.get("version") != VERSION:
        raise StorageError(
            f"{path} holds no directions of version {VERSION}; use a directions.safetensors that "
            "this release wrote."
        )
    return facts


def _by_layer(tensors: dict[str, Tensor]) -> dict[Layer, Tensor]:
    """Return float64 tensors in the order of the stream."""
    rows: dict[Layer, Tensor] = {_layer(name): tensor for name, tensor in tensors.items()}
    order: list[Layer] = sorted(rows, key=lambda layer: -1 if layer == "embedding" else layer)
    return {layer: rows[layer].to(torch.float64) for layer in order}


def _layer(name: str) -> Layer:
    return "embedding" if name == "embedding" else int(name.removeprefix("layer."))
