"""How much memory a model needs before any of it is loaded: an estimate for ``inspect``."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

BYTES_4BIT = 0.5 + 4 / 64  # nf4 with one float32 scale per 64 weights
BYTES_8BIT = 1.0
EDIT_COPIES = 2  # an edit holds one matrix and its change in float32
STREAM_COPIES = 12  # vectors of d_model alive per token at the peak of a block
MLP_COPIES = 4  # gate, up, their product and the activation


@dataclass(frozen=True)
class MemoryNeeded:
    """Bytes by purpose.

    ``weights``: the loaded parameters. ``head``: the copy of a tied head that an edit of the
    embedding makes. ``edit``: one matrix at a time in float32. ``batch``: activations of one batch.
    """

    weights: int
    head: int
    edit: int
    batch: int

    @property
    def total(self) -> int:
        """Weights and head, and the larger of what probing and editing take for a while."""
        return self.weights + self.head + max(self.edit, self.batch)

    def as_json(self) -> dict[str, int]:
        """Return the parts and the total."""
        return {**asdict(self), "total": self.total}


def memory_needed(
    module: PreTrainedModel,
    *,
    dtype: torch.dtype = torch.float32,
    quantize: Literal["4bit", "8bit"] | None = None,
    batch_tokens: int = 1024,
    streams: int = 1,
) -> MemoryNeeded:
    """Estimate the memory in bytes that a run on ``module`` needs.

    ``module`` may be without weights (``summon.outline``); ``dtype`` and ``quantize`` say how it
    would be loaded, ``streams`` how many it keeps side by side. Shared parameters count once.
    Quantisation applies to linear layers other than the head. Programs and libraries (about 0.4 GB
    on a CPU, 1 GB on a GPU) come on top.
    """
    size = dtype.itemsize
    head = module.get_output_embeddings()
    packed = {
        layer.weight
        for layer in module.modules()
        if quantize and isinstance(layer, nn.Linear) and layer is not head
    }
    per_weight = BYTES_4BIT if quantize == "4bit" else BYTES_8BIT
    parameters = list(module.parameters())
    weights = sum(
        weight.numel() * (per_weight if weight in packed else size) for weight in parameters
    )
    embedding: Any = module.get_input_embeddings()
    table: Tensor = embedding.weight
    is_tied = isinstance(head, nn.Linear) and head.weight is table
    config = module.config.get_text_config()
    per_token = STREAM_COPIES * streams * config.hidden_size + MLP_COPIES * mlp_width(config)
    return MemoryNeeded(
        weights=int(weights),
        head=table.numel() * size if is_tied else 0,
        edit=max(weight.numel() for weight in parameters) * torch.float32.itemsize * EDIT_COPIES,
        batch=batch_tokens * per_token * size,
    )


def mlp_width(config: PretrainedConfig) -> int:
    """Return the width of the widest MLP that ``config`` names, by default 4 d_model."""
    width: int | list[int] | None = getattr(config, "intermediate_size", None)
    widest = max(width) if isinstance(width, list) else width
    return widest or 4 * int(config.hidden_size)
