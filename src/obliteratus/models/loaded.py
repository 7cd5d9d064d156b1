"""A model in memory with everything that says where it came from."""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from obliteratus.amounts import count
from obliteratus.models.anatomy import Anatomy

SourceKind = Literal["hub", "folder", "gguf", "catalogue"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from, precisely enough to get the same bytes again.

    ``asked`` is what the user typed; ``identifier`` the Hub id, absolute folder or file, or
    catalogue name; ``revision`` the commit of a Hub model; ``sha256`` of a pinned file;
    ``fingerprint`` a hash that is equal exactly when the weights and tokenizer are. ``sample`` is a
    hash of parts of the weights (``checkpoint.sample``): another model has another one, and it is
    taken without reading all of them; empty where there was no folder.
    """

    asked: str
    kind: SourceKind
    identifier: str
    fingerprint: str
    revision: str | None = None
    sha256: str | None = None
    license: str | None = None
    sample: str = ""


@dataclass(frozen=True)
class ModelOutline:
    """A model whose matrices may be absent (on ``meta``): all that planning an edit looks at.

    One-dimensional parameters, such as the gains of norms, hold their values.
    """

    module: PreTrainedModel
    anatomy: Anatomy
    source: ModelSource
    dtype: torch.dtype


@dataclass(frozen=True)
class LoadedModel(ModelOutline):
    """What ``summon`` returns. ``module`` is in evaluation mode, gradients off.

    ``quantization`` says how the weights are packed in memory, ``unpacked_from`` how those of an
    ordinary module were packed before (fp8, mxfp4, bitsandbytes, 4bit, 8bit, ...).
    ``chat_template_sha256`` is None for a base model without a chat template. ``parallel`` says
    what the processes of this run share: the matrices (``tensor``), so that those in ``module`` are
    parts, or the prompts (``data``).
    """

    tokenizer: PreTrainedTokenizerBase
    quantization: Literal["4bit", "8bit"] | None = None
    chat_template_sha256: str | None = None
    unpacked_from: str | None = None
    parallel: Literal["tensor", "data"] | None = None

    @property
    def device(self) -> torch.device:
        """The device on which inputs go."""
        return self.module.device


def summary(model: LoadedModel) -> str:
    """Return family, size, type and place of a model in a few words."""
    n_parameters = sum(weight.numel() for weight in model.module.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{model.anatomy.family}, {model.anatomy.n_layers} blocks, {count(n_parameters)} "
        f"parameters, {model.quantization or dtype} on {model.device}"
    )
