"""Activations on disk: one safetensors file that says what it holds.

Tensors are called ``<class>.<layer>.<what>``, with the class ``harmful`` or ``harmless``, the layer
``embedding`` or ``layer.<i>`` (the output of block i before the final norm), and what ``mean`` or
``squared_deviation`` (float64, position x d_model) or ``kept`` (float32, prompt x position x
d_model). The header's one metadata entry, ``obliteratus``, is JSON: positions, prompt ids and
categories, counts, pairing and the fingerprint. It is one entry because safetensors writes several
in random order.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from obliteratus.errors import StorageError
from obliteratus.probe.activations import Activations, ClassActivations, Moments, PromptClass
from obliteratus.shapes import Layer

KEY = "obliteratus"
FORMAT = "activations.2"  # 2: categories
CLASSES: tuple[PromptClass, ...] = ("harmful", "harmless")


def layer_name(layer: Layer) -> str:
    """Return the name of ``layer`` in files: ``embedding`` or ``layer.<i>``."""
    return "embedding" if layer == "embedding" else f"layer.{layer}"


def save_activations(activations: Activations, path: Path) -> None:
    """Write ``activations`` to ``path`` (kept prompts and all); equal values give equal bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name in CLASSES:
        side: ClassActivations = getattr(activations, name)
        for layer, moments in side.moments.items():
            tensors[f"{name}.{layer_name(layer)}.mean"] = moments.mean.contiguous()
            tensors[f"{name}.{layer_name(layer)}.squared_deviation"] = (
                moments.squared_deviation.contiguous()
            )
        for layer, kept in side.kept.items():
            tensors[f"{name}.{layer_name(layer)}.kept"] = kept.contiguous()
    try:
        save_file(tensors, path, metadata=_metadata(activations))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {error}.") from error


def load_activations(path: Path) -> Activations:
    """Read what :func:`save_activations` wrote.

    Raises:
        StorageError: the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(KEY, "{}"))
            if facts.get("format") != FORMAT:
                raise StorageError(
                    f"{path} does not hold activations in the format {FORMAT}. Probe again with "
                    "this version to make such a file."
                )
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist.") from error
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise StorageError(f"{path} cannot be read as safetensors ({error}).") from error
    sides = {name: _side(facts[name], facts["layers"], tensors, name) for name in CLASSES}
    return Activations(
        **sides,
        positions=tuple(facts["positions"]),
        is_paired=facts["is_paired"],
        fingerprint=facts["fingerprint"],
    )


def _metadata(activations: Activations) -> dict[str, str]:
    facts: dict[str, Any] = {
        "format": FORMAT,
        "layers": list(activations.layers),
        "positions": list(activations.positions),
        "is_paired": activations.is_paired,
        "fingerprint": activations.fingerprint,
    }
    for name in CLASSES:
        side: ClassActivations = getattr(activations, name)
        facts[name] = {
            "prompt_ids": list(side.prompt_ids),
            "categories": list(side.categories),
            "counts": [moments.count for moments in side.moments.values()],
        }
    return {KEY: json.dumps(facts, sort_keys=True)}


def _side(
    facts: dict[str, Any], layers: list[Layer], tensors: Mapping[str, Tensor], name: str
) -> ClassActivations:
    moments: dict[Layer, Moments] = {}
    kept: dict[Layer, Tensor] = {}
    for layer, count in zip(layers, facts["counts"], strict=True):
        stem = f"{name}.{layer_name(layer)}"
        moments[layer] = Moments(
            count, tensors[f"{stem}.mean"], tensors[f"{stem}.squared_deviation"]
        )
        if f"{stem}.kept" in tensors:
            kept[layer] = tensors[f"{stem}.kept"]
    return ClassActivations(tuple(facts["prompt_ids"]), tuple(facts["categories"]), moments, kept)
