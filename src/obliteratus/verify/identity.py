"""Fingerprints of everything that determines a measurement: weights in memory, vocabulary, code."""

import hashlib
import importlib.metadata
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from obliteratus.measure.generation import stop_tokens
from obliteratus.measure.head import Head
from obliteratus.models.loaded import LoadedModel
from obliteratus.processes import count

WORDS = 1 << 18  # int64 words folded at once: 2 MiB stays in a CPU's cache
MULTIPLIER_SEED = 20240617  # fixed for ever: another one would change every fingerprint
PACKAGES = ("obliteratus", "torch", "transformers", "tokenizers")
VOLATILE = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "distributed_config",
)
"""Configuration keys that say where a model came from and not what it computes."""
CODE = ("obliteratus.measure", "obliteratus.probe", "obliteratus.models")


class Subject(BaseModel):
    """Which model was measured: what it was called, and fingerprints of what was in memory.

    Attributes:
        name: The name or folder that it was asked for by.
        revision: The commit on the Hub; null elsewhere.
        license: What its card says; null where that is unknown.
        source: The fingerprint of where it came from.
        weights: Equal exactly when every parameter, buffer and the configuration are, bit for bit
            (up to a chance of 2⁻⁶⁴).
        head: Likewise, of what turns a final hidden state into logits alone.
        vocabulary: The SHA-256 of the tokenizer's tokens and ids.
        model_type: The architecture, by its name in transformers.
        layers: How many blocks it has.
        d_model: The width of the residual stream.
        dtype: What it computed in.
        quantization: How its weights are quantised; null where they are not.
        device: The kind of device: cpu, cuda, mps.
        chat_template: The SHA-256 of its chat template; null for a base model without one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    revision: str | None = None
    license: str | None = None
    source: str
    weights: str
    head: str
    vocabulary: str
    model_type: str
    layers: int
    d_model: int
    dtype: str
    quantization: str | None = None
    device: str
    chat_template: str | None = None


def subject_of(model: LoadedModel, head: Head) -> Subject:
    """Return who ``model`` is, reading every weight once."""
    return Subject(
        name=model.source.asked,
        revision=model.source.revision,
        license=model.source.license,
        source=model.source.fingerprint,
        weights=weights_fingerprint(model),
        head=head_fingerprint(head),
        vocabulary=vocabulary_fingerprint(model),
        model_type=model.anatomy.model_type,
        layers=model.anatomy.n_layers,
        d_model=model.anatomy.d_model,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        device=model.device.type,
        chat_template=model.chat_template_sha256,
    )


def weights_fingerprint(model: LoadedModel) -> str:
    """Return a fingerprint of parameters and buffers as they are in memory, and configuration.

    It sees an edit in place, which the fingerprint of the source cannot; two folders with the same
    weights share it. Tensors that are offloaded (they cannot be edited in place) and quantised
    models (whose scales are not parameters) are represented by the source, and so is a model that
    several processes hold in parts.
    """
    config = model.module.config.to_dict()
    parts: list[Any] = [
        {key: value for key, value in config.items() if key not in VOLATILE},
        sorted(stop_tokens(model)),
    ]
    if model.parallel == "tensor":
        return digest([*parts, model.source.fingerprint, model.parallel, count()])
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    tensors = (*model.module.named_parameters(), *model.module.named_buffers())
    is_elsewhere = model.quantization is not None or any(tensor.is_meta for _, tensor in tensors)
    parts.append(model.source.fingerprint if is_elsewhere else None)
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        if tensor.is_meta:
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen[place] = tensor_fingerprint(tensor)
        parts.append([name, seen[place]])
    return digest(parts)


def head_fingerprint(head: Head) -> str:
    """Return a fingerprint of everything that turns a final hidden state into logits."""
    bias = None if head.bias is None else tensor_fingerprint(head.bias)
    return digest([tensor_fingerprint(head.weight), bias, head.multiplier, head.softcap])


@torch.no_grad()
def tensor_fingerprint(tensor: Tensor) -> str:
    """Return a fingerprint of a tensor's dtype, shape and bytes, computed where the tensor is.

    Blocks of 2¹⁸ words are folded to Σ word · odd random multiplier (mod 2⁶⁴), and the folds are
    hashed in order: as fast as memory, where a cryptographic hash of all bytes takes seconds per
    gigabyte. It guards against mistakes, not against an adversary.
    """
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = raw.numel() // 8 * 8
    words = raw[:whole].view(torch.int64) if raw.data_ptr() % 8 == 0 else _copied(raw[:whole])
    multipliers = _multipliers().to(raw.device)
    folds = [
        (block * multipliers[: block.numel()]).sum().reshape(1)
        for block in words.split(WORDS)
        if block.numel()
    ]
    folded: list[int] = torch.cat(folds).tolist() if folds else []
    tail: list[int] = raw[whole:].tolist()
    return digest([str(tensor.dtype), list(tensor.shape), folded, tail])


def vocabulary_fingerprint(model: LoadedModel) -> str:
    """Return a hash of the tokenizer's tokens with their ids."""
    return digest(sorted(model.tokenizer.get_vocab().items()))


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@cache
def code_fingerprint() -> str:
    """Return a hash of this program's measuring code: changed code finds no old results."""
    found: list[tuple[str, str]] = []
    for package in CODE:
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.append((f"{package}/{path.relative_to(root).as_posix()}", content))
    return digest(found)


def digest(value: object) -> str:
    """Return the SHA-256 of a value as JSON; what JSON does not know is written as ``str``."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _copied(raw: Tensor) -> Tensor:
    return raw.clone().view(torch.int64)


@cache
def _multipliers() -> Tensor:
    generator = torch.Generator().manual_seed(MULTIPLIER_SEED)
    words = torch.randint(-(1 << 62), 1 << 62, (WORDS,), generator=generator, dtype=torch.int64)
    return words * 2 + 1
