"""A LoRA adapter in peft's format, merged into plain weights by a matrix product."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from obliteratus.errors import ModelSourceError
from obliteratus.store import sha256_of_file

FILES = ("adapter_config.json", "adapter_model.safetensors")
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the base as well
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
}
"""Settings under which an adapter is no more than W' = W + (alpha / r) B A."""


def merge_adapter(module: nn.Module, folder: Path) -> int:
    """Add a LoRA adapter to the ``nn.Linear`` weights of ``module`` in place; return how many.

    W' = W + s B A with s = lora_alpha / r (lora_alpha / √r for rank-stabilised adapters), computed
    in float32 and cast to the weight's dtype once. Every tensor of the adapter is used.

    Raises:
        ModelSourceError: the adapter is missing or damaged, does more than plain LoRA, has a tensor
            without its other half, or does not fit the model.
    """
    config = _config(folder)
    pairs = _pairs(folder)
    rank = int(config["r"])
    root = rank**0.5 if config.get("use_rslora") else rank
    scale = float(config["lora_alpha"]) / root
    for name, (down, up) in pairs.items():
        weight = _target(module, name, folder)
        if down.shape != (rank, weight.shape[1]) or up.shape != (weight.shape[0], rank):
            raise ModelSourceError(
                f"the adapter {folder.name} does not fit '{name}' of shape {tuple(weight.shape)}: "
                f"A is {tuple(down.shape)}, B is {tuple(up.shape)}, r is {rank}."
            )
        with torch.no_grad():
            change = scale * (up.float() @ down.float())
            weight.copy_(weight.float() + change.to(weight.device))
    return len(pairs)


def adapter_sha256(folder: Path) -> tuple[str, str]:
    """Return the hashes of the adapter's configuration and tensors.

    Raises:
        ModelSourceError: the adapter is not there.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise ModelSourceError(
                f"the adapter '{folder.name}' is not complete in this installation: "
                f"{folder / name} is missing. Install the package again."
            )
    config, tensors = (sha256_of_file(folder / name) for name in FILES)
    return config, tensors


def _config(folder: Path) -> dict[str, Any]:
    adapter_sha256(folder)
    try:
        config: dict[str, Any] = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelSourceError(f"{folder / FILES[0]} is not valid JSON ({error}).") from error
    for key, allowed in PLAIN.items():
        if key in config and config[key] not in allowed:
            raise ModelSourceError(
                f"the adapter {folder.name} has {key} = {config[key]!r}, which is more than a "
                "plain LoRA of linear layers. Merge it with peft and give the merged folder."
            )
    return config


def _pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every module that the adapter changes."""
    try:
        tensors = load_file(folder / FILES[1])
    except SafetensorError as error:
        raise ModelSourceError(f"{folder / FILES[1]} is damaged ({error}).") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = TENSOR.fullmatch(key)
        if match is None:
            raise ModelSourceError(
                f"the adapter {folder.name} has a tensor '{key}' that is no LoRA matrix."
            )
        halves.setdefault(match["module"], {})[match["side"]] = tensor
    lonely = [name for name, sides in halves.items() if len(sides) != 2]
    if lonely or not halves:
        what = f"only one half for '{lonely[0]}'" if lonely else "no tensors"
        raise ModelSourceError(f"the adapter {folder.name} has {what}.")
    return {name: (sides["A"], sides["B"]) for name, sides in halves.items()}


def _target(module: nn.Module, name: str, folder: Path) -> Tensor:
    try:
        layer = module.get_submodule(name)
    except AttributeError as error:
        raise ModelSourceError(
            f"the adapter {folder.name} changes '{name}', which the model does not have."
        ) from error
    if type(layer) is not nn.Linear:
        raise ModelSourceError(
            f"the adapter {folder.name} changes '{name}', which is a {type(layer).__name__} and "
            "not a plain nn.Linear."
        )
    if (
        sum(weight is layer.weight for _, weight in module.named_parameters(remove_duplicate=False))
        > 1
    ):
        raise ModelSourceError(
            f"the adapter {folder.name} changes '{name}', whose weight another module shares."
        )
    return layer.weight
