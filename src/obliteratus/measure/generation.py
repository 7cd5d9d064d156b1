"""Greedy generation for measurement: the shared prefix run once, finished rows leave their batch.

Prompts are run padded on the right, where causal attention does not see the padding; then keys and
values are moved so that all rows end in the same column. In that layout the distances between
tokens, and so sliding windows, are those of an unpadded row, and columns before it are masked.
"""

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from obliteratus.errors import MeasurementError
from obliteratus.events import Deviation, Note, Progress, emit
from obliteratus.measure.head import Head, head_of
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import is_out_of_memory
from obliteratus.probe.prefix import SharedPrefix, can_share_prefix, shared_prefix

CPU_ROWS = 32  # a decoding step reads every weight once for the batch; then arithmetic is the limit
ACCELERATOR_ROWS = 256
MEMORY_SHARE = 0.25  # of the free memory
CACHE_COPIES = 2  # a layer's keys and values are copied when a token is added or a row dropped
NEUTRAL = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "bad_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "stop_strings": (None,),
}
"""Generation settings that change a greedy completion, with the values at which they do not."""


@dataclass(frozen=True)
class Completion:
    """What a model said after one prompt.

    ``token_ids`` holds every generated token, the stop token included; ``text`` is decoded without
    special tokens. ``is_finished``: the model stopped by itself before the limit.
    """

    token_ids: tuple[int, ...]
    text: str
    is_finished: bool


def generate(
    model: LoadedModel,
    encoded: Encoded,
    *,
    max_new_tokens: int,
    task: str,
    batch_rows: int = 0,
) -> tuple[Completion, ...]:
    """Return the most probable continuation of each prompt, token by token, in prompt order.

    Each equals ``module.generate(do_sample=False)`` of that prompt alone, up to rounding, with the
    settings of :data:`NEUTRAL` left neutral: a model's own repetition penalty would measure the
    penalty and not the model (:func:`generation_deviations` says whether it asks for one). A row
    stops at any stop token of the model's generation configuration and leaves its batch.
    ``batch_rows`` bounds a batch (0 chooses by speed and memory); one that does not fit into memory
    is halved, with a Note. One Progress of ``task`` is emitted whenever prompts are finished.

    Raises:
        MeasurementError: there are no prompts, one is empty, ``max_new_tokens`` is below 1, a
            prompt and its answer are longer than the model takes, or one prompt alone does not fit
            into memory.
    """
    lengths = _checked_lengths(model, encoded, max_new_tokens)
    head = head_of(model)
    prefix = _prefix(model, encoded, min(lengths) - 1)
    limit = batch_rows or _automatic_rows(model, max(lengths) + max_new_tokens)
    waiting = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    found: dict[int, tuple[int, ...]] = {}
    start = time.perf_counter()
    while waiting:
        rows = _next_rows(model, waiting, lengths, limit)
        prompts = [encoded.ids[row] for row in rows]
        try:
            for index, tokens in _decode(model, head, prompts, prefix, max_new_tokens):
                found[rows[index]] = tokens
                elapsed = time.perf_counter() - start
                emit(Progress(task, len(found), len(lengths), "prompts", elapsed))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            limit = _halved(len(rows), max(lengths) + max_new_tokens)
        waiting = [row for row in waiting if row not in found]
    return tuple(_completion(model, found[row]) for row in range(len(lengths)))


def generation_deviations(model: LoadedModel) -> tuple[Deviation, ...]:
    """Return one deviation per setting of the model's generation configuration that is left out."""
    config = model.module.generation_config
    return tuple(
        Deviation(
            "generation", f"{name} = {value}", "neutral", "completions are compared as argmax"
        )
        for name, neutral in NEUTRAL.items()
        if (value := getattr(config, name, None)) not in neutral
    )


def stop_tokens(model: LoadedModel) -> frozenset[int]:
    """Return the token ids at which the model's generation configuration says to stop."""
    found = model.module.generation_config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset(found) if isinstance(found, list) else frozenset({int(found)})


@dataclass
class _Rows:
    """The rows of a batch that are still being written, aligned at their last token."""

    index: list[int]
    last: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    mask: Int[Tensor, "row column"]
    cache: Cache

    def keep(self, chosen: Bool[Tensor, " row"]) -> None:
        """Drop the other rows, their keys and values included."""
        rows = torch.nonzero(chosen)[:, 0]
        self.index = [self.index[row] for row in rows.tolist()]
        self.last, self.position, self.mask = self.last[rows], self.position[rows], self.mask[rows]
        self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]

    def append(self, token_ids: Int[Tensor, " row"]) -> None:
        """Make ``token_ids`` the next input."""
        self.last, self.position = token_ids, self.position + 1
        self.mask = nn.functional.pad(self.mask, (0, 1), value=1)


@torch.no_grad()
def _decode(
    model: LoadedModel,
    head: Head,
    prompts: Sequence[tuple[int, ...]],
    prefix: SharedPrefix | None,
    max_new_tokens: int,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (row, its new tokens) as rows finish."""
    stops = torch.tensor(sorted(stop_tokens(model)), device=model.device, dtype=torch.long)
    hidden, rows = _prefill(model, prompts, prefix)
    written: list[list[int]] = [[] for _ in prompts]
    for step in range(max_new_tokens):
        chosen = _most_probable(head, hidden)
        is_done = torch.isin(chosen, stops) | (step == max_new_tokens - 1)
        for index, token, done in zip(rows.index, chosen.tolist(), is_done.tolist(), strict=True):
            written[index].append(token)
            if done:
                yield index, tuple(written[index])
        if bool(is_done.all()):
            return
        rows.append(chosen)
        if bool(is_done.any()):
            rows.keep(~is_done)
        hidden = _step(model, rows)


def _prefill(
    model: LoadedModel, prompts: Sequence[tuple[int, ...]], prefix: SharedPrefix | None
) -> tuple[Float[Tensor, "row d_model"], _Rows]:
    """Run the prompts and return the states at their last tokens, and the rows aligned there."""
    cached = 0 if prefix is None else len(prefix)
    if prefix is not None:
        cache = prefix.growing_cache(len(prompts))
    elif can_share_prefix(model):
        cache = DynamicCache()  # whole, even where a window would do: it is moved below
    else:
        cache = DynamicCache(config=model.module.config)
    suffixes = [torch.tensor(ids[cached:]) for ids in prompts]
    lengths = torch.tensor([len(ids) for ids in prompts])
    output = _backbone(model)(
        input_ids=nn.utils.rnn.pad_sequence(suffixes, batch_first=True).to(model.device),
        past_key_values=cache,
        use_cache=True,
    )
    last = (lengths - cached - 1).to(model.device)
    hidden = output.last_hidden_state[torch.arange(len(prompts), device=model.device), last]
    columns, shift = torch.arange(int(lengths.max())), lengths.max() - lengths[:, None]
    if bool(shift.any()):
        cache = _moved(cache, (columns - shift).clamp(min=0))
    return hidden, _Rows(
        index=list(range(len(prompts))),
        last=last,
        position=lengths.to(model.device) - 1,
        mask=(columns >= shift).long().to(model.device),
        cache=cache,
    )


def _moved(cache: DynamicCache, source: Int[Tensor, "row column"]) -> DynamicCache:
    """Return a cache whose column j holds, per row, what was in column ``source[row, j]``."""
    moved = DynamicCache()
    for layer, states in enumerate(cache):
        keys, values = (_taken(state, source) for state in states[:2] if state is not None)
        moved.update(keys, values, layer)
    return moved


def _taken(
    states: Float[Tensor, "row head column width"], source: Int[Tensor, "row column"]
) -> Float[Tensor, "row head column width"]:
    index = source.to(states.device)[:, None, :, None]
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))


def _step(model: LoadedModel, rows: _Rows) -> Float[Tensor, "row d_model"]:
    """Run one token per row."""
    backbone = _backbone(model)
    takes_positions = "position_ids" in inspect.signature(backbone.forward).parameters
    output = backbone(
        input_ids=rows.last[:, None],
        attention_mask=rows.mask,
        past_key_values=rows.cache,
        use_cache=True,
        **({"position_ids": rows.position[:, None]} if takes_positions else {}),
    )
    return output.last_hidden_state[:, -1]


def _backbone(model: LoadedModel) -> nn.Module:
    return model.module.get_submodule(model.anatomy.backbone)


def _most_probable(head: Head, hidden: Float[Tensor, "row d_model"]) -> Int[Tensor, " row"]:
    logits = head.logits(hidden)
    if bool(torch.isnan(logits).any()):
        raise MeasurementError(
            "the model's logits are NaN while generating. Load it with --dtype float32 or bfloat16."
        )
    return logits.argmax(dim=-1)


def _checked_lengths(model: LoadedModel, encoded: Encoded, max_new_tokens: int) -> list[int]:
    lengths = [len(ids) for ids in encoded.ids]
    if not lengths or min(lengths) == 0 or max_new_tokens < 1:
        raise MeasurementError(
            f"generation needs prompts with at least one token each and max_new_tokens >= 1; got "
            f"{len(lengths)} prompts, {lengths.count(0)} of them empty, and {max_new_tokens}."
        )
    most = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and max(lengths) + max_new_tokens > most:
        raise MeasurementError(
            f"prompt {lengths.index(max(lengths))} (counted from 0) has {max(lengths)} tokens; "
            f"with {max_new_tokens} new ones that is more than the {most} that the model takes. "
            "Leave the prompt out or lower verify.max_new_tokens."
        )
    return lengths


def _prefix(model: LoadedModel, encoded: Encoded, longest: int) -> SharedPrefix | None:
    length = min(encoded.shared_prefix, longest)
    if length < 1 or len(encoded.ids) < 2 or not can_share_prefix(model):
        return None
    return shared_prefix(model, encoded.ids[0][:length])


def _next_rows(model: LoadedModel, waiting: list[int], lengths: list[int], limit: int) -> list[int]:
    """Return the first rows of ``waiting``; of one length where padding would enter the state."""
    rows = waiting[:limit]
    if can_share_prefix(model):
        return rows
    return [row for row in rows if lengths[row] == lengths[rows[0]]]


def _automatic_rows(model: LoadedModel, tokens: int) -> int:
    """Return how many rows of ``tokens`` run fastest and fit: keys, values and a row of logits."""
    config = model.module.config.get_text_config()
    width = model.anatomy.d_model
    if getattr(config, "num_key_value_heads", None) and getattr(config, "head_dim", None):
        width = config.num_key_value_heads * config.head_dim
    size = torch.empty((), dtype=model.dtype).element_size()
    need = CACHE_COPIES * 2 * model.anatomy.n_layers * width * tokens * size + 8 * config.vocab_size
    if model.device.type == "cuda":
        free, fastest = torch.cuda.mem_get_info(model.device)[0], ACCELERATOR_ROWS
    else:
        free = psutil.virtual_memory().available
        fastest = CPU_ROWS if model.device.type == "cpu" else ACCELERATOR_ROWS
    return max(1, min(fastest, int(MEMORY_SHARE * free) // need))


def _halved(rows: int, tokens: int) -> int:
    if rows == 1:
        raise MeasurementError(
            f"memory ran out while generating for a single prompt of {tokens} tokens in all. Lower "
            "verify.max_new_tokens, or load the model with --dtype bfloat16 or --quantize 4bit."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    emit(Note(f"memory ran out generating for {rows} prompts at once; going on with {rows // 2}."))
    return rows // 2


def _completion(model: LoadedModel, token_ids: tuple[int, ...]) -> Completion:
    text = model.tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return Completion(token_ids, str(text), is_finished=token_ids[-1] in stop_tokens(model))
