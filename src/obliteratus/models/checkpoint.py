"""A checkpoint as it lies on disk: which bytes of which file make which parameter.

What a file calls a tensor is not always what the model calls it, and a fused tensor of experts may
be stored expert by expert. transformers' own conversion mapping decides; a conversion that is not
understood here is refused where a tensor behind it is to be edited.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from obliteratus.errors import ModelSourceError
from obliteratus.models.folders import INDEX, weight_files
from obliteratus.store import read_json

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
LENGTH = 8  # bytes of the number before a header
LARGEST_HEADER = 1 << 27  # far beyond any real one: a damaged length must not fill the memory
SAMPLED_TENSORS = 64
SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; its bytes are ``start`` to ``stop`` of ``path``."""

    name: str
    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Its floating-point type, or None where it is of another kind (packed, or integers)."""
        return DTYPES.get(self.kind)


@dataclass(frozen=True)
class Part:
    """A stored tensor as (a part of) the parameter that it makes.

    ``is_slice``: it is one expert of a fused parameter; ``is_transposed``: its last two axes are
    the other way round. ``conversion`` names what else is done to it on loading, or is None.
    """

    tensor: StoredTensor
    parameter: str
    is_slice: bool = False
    is_transposed: bool = False
    conversion: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a folder in order, and every tensor in them by its stored name."""

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    def of_file(self, path: Path) -> tuple[StoredTensor, ...]:
        """Return the tensors of one file in the order of their bytes."""
        found = (tensor for tensor in self.tensors.values() if tensor.path == path)
        return tuple(sorted(found, key=lambda tensor: tensor.start))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of all weight files of ``folder``.

    Raises:
        ModelSourceError: a file is missing, truncated or damaged, a tensor lies in two files, or
            the index names a tensor that its file does not hold.
    """
    files = weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for tensor in read_tensors(path):
            if tensor.name in tensors:
                raise ModelSourceError(
                    f"{tensor.name} lies in {tensors[tensor.name].path.name} and in {path.name}. "
                    "Remove the file that does not belong to the checkpoint."
                )
            tensors[tensor.name] = tensor
    for name, file in _index(folder).items():
        if name not in tensors or tensors[name].path.name != file:
            raise ModelSourceError(
                f"the index of {folder} says that {name} lies in {file}, and it does not. Download "
                "or copy the checkpoint again."
            )
    return Checkpoint(folder, files, tensors)


def read_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Return the tensors of a safetensors file, from its header, in the order of their bytes.

    Raises:
        ModelSourceError: the header cannot be read, or the file is shorter or longer than it says.
    """
    try:
        header, begin = read_header(path)
        found = [
            StoredTensor(
                name,
                path,
                str(entry["dtype"]),
                tuple(int(length) for length in entry["shape"]),
                begin + int(entry["data_offsets"][0]),
                begin + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise ModelSourceError(
            f"{path} has no readable safetensors header ({error}). Download or copy it again."
        ) from error
    found.sort(key=lambda tensor: tensor.start)
    end = max((tensor.stop for tensor in found), default=begin)
    size = path.stat().st_size
    if end != size:
        raise ModelSourceError(
            f"{path} has {size} bytes and its header promises {end}. Download or copy it again."
        )
    return tuple(found)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where its data begins.

    Raises:
        ValueError: it is not JSON, or its length makes no sense.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(LENGTH))
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        return json.loads(file.read(length)), LENGTH + length


def parts_of(module: PreTrainedModel, tensors: Iterable[StoredTensor]) -> tuple[Part, ...]:
    """Say which parameter of ``module`` (may be on ``meta``) each stored tensor makes.

    Tensors that the model does not use are left out, as on loading.
    """
    mapping = get_model_conversion_mapping(module)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    names: dict[str, Any] = dict(module.state_dict())
    found: list[Part] = []
    for tensor in tensors:
        new, pattern = rename_source_key(
            tensor.name, renamings, converters, module.base_model_prefix, names
        )
        if new not in names and tensor.name in names:
            new, pattern = rename_source_key(
                tensor.name,
                [],
                [],
                base_model_prefix=module.base_model_prefix,
                meta_state_dict=names,
            )
        if new in names:
            converter = None if pattern is None else by_pattern[pattern]
            found.append(_part(tensor, new, tuple(names[new].shape), converter))
    return tuple(found)


def sample(checkpoint: Checkpoint) -> str:
    """Return a hash of names, shapes and a few kilobytes of up to 64 tensors.

    It is equal for every copy of a checkpoint, however it is cut into files, and different for
    another model or another training of it, without reading hundreds of gigabytes.
    """
    names = sorted(checkpoint.tensors)
    digest = hashlib.sha256(f"{len(names)}".encode())
    for name in names[:: max(1, len(names) // SAMPLED_TENSORS)]:
        tensor = checkpoint.tensors[name]
        middle = (tensor.start + tensor.stop) // 2
        with tensor.path.open("rb") as file:
            file.seek(middle)
            block = file.read(min(SAMPLED_BYTES, tensor.stop - middle))
        digest.update(f"\0{name}\0{tensor.kind}\0{tensor.shape}\0".encode() + block)
    return digest.hexdigest()


def _part(
    tensor: StoredTensor, parameter: str, shape: tuple[int, ...], converter: WeightConverter | None
) -> Part:
    if converter is None:
        return Part(tensor, parameter)
    is_slice = is_transposed = False
    n_names = {len(converter.source_patterns), len(converter.target_patterns)}
    for step in converter.operations:
        if isinstance(step, MergeModulelist) and step.dim == 0 and n_names == {1}:
            is_slice = True
        elif isinstance(step, Transpose) and n_names == {1}:
            n_axes = len(tensor.shape) + is_slice
            swaps_last = {step.dim0 % n_axes, step.dim1 % n_axes} == {n_axes - 1, n_axes - 2}
            if not swaps_last:
                return Part(tensor, parameter, conversion=type(step).__name__)
            is_transposed ^= not (step.check_dims and tensor.shape == shape)
        else:
            return Part(tensor, parameter, conversion=type(step).__name__)
    return Part(tensor, parameter, is_slice, is_transposed)


def _index(folder: Path) -> Mapping[str, str]:
    path = folder / INDEX
    return read_json(path)["weight_map"] if path.is_file() else {}
