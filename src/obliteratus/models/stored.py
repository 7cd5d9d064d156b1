"""A checkpoint whose matrices are read one at a time, which works at any size."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from safetensors import SafetensorError, safe_open
from torch import Tensor

from obliteratus.errors import ModelSourceError
from obliteratus.models.anatomy import Layout, WeightSite
from obliteratus.models.checkpoint import Checkpoint, Part, parts_of
from obliteratus.models.folders import read_config
from obliteratus.models.loaded import ModelOutline, ModelSource
from obliteratus.models.outline import load_outline
from obliteratus.models.summon import DEFAULTS
from obliteratus.settings import ModelSettings

DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class StoredModel:
    """The outline of a model, and where in its files each parameter lies."""

    outline: ModelOutline
    parts: Mapping[str, tuple[Part, ...]]

    def tensors(self, site: WeightSite) -> Iterator[tuple[str, Tensor, Layout]]:
        """Yield what is stored of the matrix of ``site``: name, tensor and layout.

        A fused matrix of experts that is stored expert by expert is several tensors, in the order
        of their names.

        Raises:
            ModelSourceError: the checkpoint does not hold the matrix, holds it packed or behind a
                conversion that is not understood, or cannot be read.
        """
        found = self.parts.get(site.name) or self.parts.get(site.tied_to or "", ())
        if not found:
            raise ModelSourceError(
                f"the checkpoint holds no tensor that becomes {site.name}. Download or copy it "
                "again."
            )
        for part in found:
            yield part.tensor.name, _read(part, site), _layout(part, site)


def open_stored(
    checkpoint: Checkpoint, source: ModelSource, settings: ModelSettings = DEFAULTS
) -> StoredModel:
    """Return the model of ``checkpoint`` with its vectors in memory and its matrices on disk.

    Raises:
        ModelSourceError: its weights are packed, or its vectors cannot be read.
        UnsupportedArchitectureError: no family file describes it.
    """
    packing = read_config(checkpoint.folder).get("quantization_config")
    if packing:
        method = packing.get("quant_method", "an unnamed method")
        raise ModelSourceError(
            f"the weights of {source.asked} are stored packed ({method}), and packed numbers are "
            "not read. Give the unquantised checkpoint, or save this one unpacked first."
        )
    outline = load_outline(checkpoint, source, settings)
    parts: dict[str, list[Part]] = {}
    for part in parts_of(outline.module, checkpoint.tensors.values()):
        parts.setdefault(part.parameter, []).append(part)
    return StoredModel(
        outline, {name: tuple(sorted(each, key=_natural)) for name, each in parts.items()}
    )


def _natural(part: Part) -> list[tuple[int, str]]:
    """Return a key by which expert 10 comes after expert 9."""
    words = DIGITS.split(part.tensor.name)
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words]


def _layout(part: Part, site: WeightSite) -> Layout:
    if not part.is_transposed:
        return site.layout
    return "in_out" if site.layout == "out_in" else "out_in"


def _read(part: Part, site: WeightSite) -> Tensor:
    stored = part.tensor
    if part.conversion is not None:
        raise ModelSourceError(
            f"{stored.name} becomes {site.name} by a conversion ({part.conversion}) that cannot be "
            "read matrix by matrix. Save the model with transformers first, and give that folder."
        )
    if stored.dtype is None:
        raise ModelSourceError(
            f"{stored.name} is stored as {stored.kind}: packed numbers are not read. Give the "
            "unquantised checkpoint."
        )
    try:
        with safe_open(stored.path, framework="pt") as file:
            return file.get_tensor(stored.name)
    except (OSError, SafetensorError) as error:
        raise ModelSourceError(
            f"{stored.name} cannot be read from {stored.path} ({error}). Check the disk, or copy "
            "the file again."
        ) from error
