"""The model's backbone over many prompts: sorted by length, the shared prefix run once, no logits.

Rows are padded on the right: attention is causal, so no real token sees the padding, and neither a
mask nor position ids are needed for it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.events import Note, Progress, emit
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.memory import mlp_width
from obliteratus.probe.prefix import SharedPrefix, can_share_prefix
from obliteratus.probe.variants import Variants, prefix_of_all
from obliteratus.processes import count, gathered, number

CPU_BATCH_TOKENS = 512
"""Measured: matrix products are near their full rate, and the temporaries of a block (10 MB each at
an MLP width of 5000) still come from memory that the process keeps. At 1024 tokens each of them is
given back and faulted in again, which costs a tenth of the time."""
ACCELERATOR_BATCH_TOKENS = 16384
MEMORY_SHARE = 0.25  # of the free memory; the rest is for weights still to load and the consumer
STREAM_COPIES = 12  # tensors of d_model per token alive at the peak of a block, and captured norms
MLP_COPIES = 4  # gate, up, their product and the activation
KEEPS = {"shared": "a recurrent state", "own": "a state of its own", "none": "no state"}
OUT_OF_MEMORY = ("DefaultCPUAllocator", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How a failed allocation is told where torch has no exception of its own for it."""


@dataclass(frozen=True)
class Batch:
    """Which prompts a batch holds and which of their tokens.

    ``rows`` are prompt indices, ``input_ids`` their tokens after the first ``prefix`` (which were
    run once for all), padded on the right; ``lengths`` counts the real tokens of each row.
    """

    rows: tuple[int, ...]
    input_ids: Int[Tensor, "batch token"]
    lengths: Int[Tensor, " batch"]
    prefix: int = 0


def forward_batches(
    model: LoadedModel,
    encoded: Encoded,
    *,
    batch_tokens: int = 0,
    task: str,
    variants: Variants | None = None,
    is_shared: bool = False,
) -> Iterator[tuple[Batch, Float[Tensor, "batch token d_model"]]]:
    """Yield every batch with its hidden states after the final norm, longest prompts first.

    The prefix that all prompts share is run when the first batch is asked for, under the hooks that
    are active then; hooks must not change between batches, unless ``variants`` says of every prompt
    which variant of the model it is for. ``batch_tokens`` bounds the padded tokens of a batch (0
    chooses by speed and free memory); a batch that does not fit into memory is halved, with a Note.
    One Progress of ``task`` is emitted per batch, in prompts. ``is_shared`` says that the processes
    of a data-parallel run share the prompts, so that each yields its own; the caller gathers what
    they find.

    Raises:
        MeasurementError: there is nothing to run, a prompt is empty or longer than the model takes,
            or one prompt alone does not fit into memory.
    """
    lengths = _checked_lengths(model, encoded)
    prefix = _prefix(model, encoded, min(lengths) - 1, variants)
    limit = batch_tokens or automatic_batch_tokens(model)
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    if is_shared and model.parallel == "data":
        order = order[number() :: count()]
    start, done = time.perf_counter(), 0
    while done < len(order):
        width = lengths[order[done]] - prefix_length(prefix)
        rows = tuple(order[done : done + max(1, limit // width)])
        batch = _batch(model, encoded, rows, prefix_length(prefix))
        own = prefix if variants is None else variants.begin(rows, prefix)
        hidden = _run(model, batch, own)
        if hidden is None:
            limit = _halved(len(rows), width)
            continue
        yield batch, hidden
        done += len(rows)
        emit(Progress(task, done, len(order), "prompts", time.perf_counter() - start))


def last_hidden(
    model: LoadedModel,
    encoded: Encoded,
    *,
    batch_tokens: int = 0,
    task: str,
    variants: Variants | None = None,
) -> Float[Tensor, "prompt d_model"]:
    """Return the final-norm output at each prompt's last token, in prompt order, for the head.

    Raises:
        MeasurementError: see :func:`forward_batches`.
    """
    found: dict[int, Tensor] = {}
    batches = forward_batches(
        model,
        encoded,
        batch_tokens=batch_tokens,
        task=task,
        variants=variants,
        is_shared=True,
    )
    for batch, hidden in batches:
        rows = torch.arange(len(batch.rows), device=hidden.device)
        last = hidden[rows, batch.lengths.to(hidden.device) - 1]
        found.update(zip(batch.rows, last, strict=True))
    if model.parallel == "data":
        own = {row: vector.cpu() for row, vector in found.items()}
        for part in gathered(own):
            found |= {row: vector.to(model.device) for row, vector in part.items()}
    return torch.stack([found[row] for row in range(len(encoded.ids))])


def prefix_length(prefix: SharedPrefix | None) -> int:
    """Return the number of tokens of ``prefix``, 0 without one."""
    return 0 if prefix is None else len(prefix)


def automatic_batch_tokens(model: LoadedModel) -> int:
    """Return the padded tokens per batch that run fastest and fit into a share of the free memory.

    The need per token is that of one block's temporaries plus the outputs of all blocks (which
    hooks may keep), in the model's dtype.
    """
    config = model.module.config.get_text_config()
    streams = 1 if model.anatomy.streams is None else model.anatomy.streams.count
    copies = STREAM_COPIES * streams + model.anatomy.n_layers
    values = copies * model.anatomy.d_model + MLP_COPIES * mlp_width(config)
    per_token = values * torch.empty((), dtype=model.dtype).element_size()
    if model.device.type == "cuda":
        free, fastest = torch.cuda.mem_get_info(model.device)[0], ACCELERATOR_BATCH_TOKENS
    elif model.device.type == "cpu":
        free, fastest = psutil.virtual_memory().available, CPU_BATCH_TOKENS
    else:
        free, fastest = psutil.virtual_memory().available, ACCELERATOR_BATCH_TOKENS
    chosen = max(1, min(fastest, int(MEMORY_SHARE * free) // per_token))
    return min(gathered(chosen)) if model.parallel == "tensor" else chosen


def _checked_lengths(model: LoadedModel, encoded: Encoded) -> list[int]:
    lengths = [len(ids) for ids in encoded.ids]
    if not lengths:
        raise MeasurementError("there are no prompts to run. Give at least one.")
    if min(lengths) == 0:
        raise MeasurementError(
            f"prompt {lengths.index(0)} has no tokens (prompts are counted from 0). Leave it out."
        )
    most = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and max(lengths) > most:
        raise MeasurementError(
            f"prompt {lengths.index(max(lengths))} (counted from 0) has {max(lengths)} tokens and "
            f"the model takes at most {most}. Shorten the prompt or leave it out."
        )
    return lengths


def _prefix(
    model: LoadedModel, encoded: Encoded, longest: int, variants: Variants | None
) -> SharedPrefix | None:
    """Run the shared prefix, of at most ``longest`` tokens; None when it would not pay."""
    length = min(encoded.shared_prefix, longest)
    if length < 1 or len(encoded.ids) < 2:
        return None
    if not can_share_prefix(model):
        emit(
            Note(
                f"{model.anatomy.model_type} keeps {KEEPS[model.anatomy.cache]}, so the {length} "
                "tokens that all prompts share are run again for every prompt."
            )
        )
        return None
    return prefix_of_all(model, encoded.ids[0][:length], variants)


def _batch(model: LoadedModel, encoded: Encoded, rows: tuple[int, ...], prefix: int) -> Batch:
    suffixes = [torch.tensor(encoded.ids[row][prefix:]) for row in rows]
    lengths = torch.tensor([len(suffix) for suffix in suffixes], device=model.device)
    padded = torch.nn.utils.rnn.pad_sequence(suffixes, batch_first=True)
    return Batch(rows, padded.to(model.device), lengths, prefix)


@torch.no_grad()
def _run(model: LoadedModel, batch: Batch, prefix: SharedPrefix | None) -> Tensor | None:
    """Return the hidden states of ``batch``, or None when memory ran out."""
    backbone = model.module.get_submodule(model.anatomy.backbone)
    cache = None if prefix is None else prefix.cache()
    try:
        output = backbone(
            input_ids=batch.input_ids, past_key_values=cache, use_cache=cache is not None
        )
    except RuntimeError as error:
        if model.parallel == "tensor" or not is_out_of_memory(error):
            raise  # the other processes are in the middle of this batch
        return None
    return output.last_hidden_state


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether ``error`` says that an allocation failed, on an accelerator or the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        phrase in str(error) for phrase in OUT_OF_MEMORY
    )


def _halved(rows: int, width: int) -> int:
    """Return a batch limit that halves a batch of ``rows`` x ``width`` tokens, and say so."""
    if rows == 1:
        raise MeasurementError(
            f"memory ran out on a single prompt of {width} tokens. Leave that prompt out, or load "
            "the model with --dtype bfloat16, --quantize 4bit or a --device-map."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = rows // 2
    emit(Note(f"memory ran out on a batch of {rows} x {width} tokens; going on with {half} rows."))
    return half * width
