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

from obliteratus.errors import MeasurementError, UnsupportedArchitectureError
from obliteratus.events import Deviation, Note, Progress, emit
from obliteratus.measure.answer_cache import answer_cache
from obliteratus.measure.head import Head, head_of
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import automatic_batch_tokens, is_out_of_memory, prefix_length
from obliteratus.probe.prefix import SharedPrefix, can_share_prefix, shared_prefix

CPU_ROWS = 128
FEWEST_CPU_ROWS = 64
"""Measured on two cores: a float32 product with 32 rows takes as long as one with 64, at a third of
the rate of one with 128. So batches are large, and finished rows stay where they fill one up."""
ACCELERATOR_ROWS = 256
WORTH_DROPPING = 0.75  # rows are dropped when this share of a batch is enough: it copies the cache
MEMORY_SHARE = 0.25  # of the free memory
CACHE_NAMES = ("past_key_values", "cache_params")
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
    limit = batch_rows or automatic_rows(model, max(lengths) + max_new_tokens)
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
    """The rows of a batch, aligned at their last token; ``is_live`` marks those being written.

    ``mask`` is None for a model with a recurrent state: nothing is padded there, and some take a
    mask of more columns than the one that they run for more tokens. ``tokens`` are all so far where
    a model has no cache, and each step runs them again.
    """

    index: list[int]
    is_live: Bool[Tensor, " row"]
    last: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    mask: Int[Tensor, "row column"] | None
    cache: Cache | None
    tokens: Int[Tensor, "row token"] | None = None

    def drop_finished(self, fewest: int) -> None:
        """Drop finished rows, keys and values included, where that makes steps faster."""
        live = int(self.is_live.sum())
        count = max(live, min(fewest, len(self.index)))
        if count > WORTH_DROPPING * len(self.index):
            return
        rows = torch.argsort(~self.is_live, stable=True)[:count]
        self.index = [self.index[row] for row in rows.tolist()]
        self.last, self.position = self.last[rows], self.position[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self.is_live = self.is_live[rows]
        self.tokens = None if self.tokens is None else self.tokens[rows]
        if self.cache is not None and type(self.cache) in {Cache, DynamicCache}:
            self.cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        elif self.cache is not None:  # a family's own, which overrides this one only
            self.cache.batch_select_indices(rows)

    def append(self, token_ids: Int[Tensor, " row"]) -> None:
        """Make ``token_ids`` the next input."""
        self.last, self.position = token_ids, self.position + 1
        if self.tokens is not None:
            self.tokens = torch.cat([self.tokens, token_ids[:, None]], dim=1)
        if self.mask is not None:
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
    fewest = FEWEST_CPU_ROWS if model.device.type == "cpu" else 1
    hidden, rows = _prefill(model, prompts, prefix, room=max_new_tokens)
    written: list[list[int]] = [[] for _ in prompts]
    for step in range(max_new_tokens):
        chosen = _most_probable(head, hidden)
        is_done = torch.isin(chosen, stops) | (step == max_new_tokens - 1)
        live = rows.is_live.tolist()
        for row, (token, done) in enumerate(zip(chosen.tolist(), is_done.tolist(), strict=True)):
            if live[row]:
                index = rows.index[row]
                written[index].append(token)
                if done:
                    yield index, tuple(written[index])
        rows.is_live &= ~is_done
        if not bool(rows.is_live.any()):
            return
        rows.append(chosen)
        rows.drop_finished(fewest)
        hidden = _step(model, rows)


def _prefill(
    model: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    prefix: SharedPrefix | None,
    *,
    room: int,
) -> tuple[Float[Tensor, "row d_model"], _Rows]:
    """Run the prompts; return the states at their last tokens and the rows aligned there.

    Their cache has room for ``room`` more tokens, unless the model keeps other state than keys and
    values: then all prompts have one length, and nothing is moved.
    """
    lengths = torch.tensor([len(ids) for ids in prompts])
    mask = tokens = None
    cache: Cache | None
    if can_share_prefix(model):
        width = len(prompts[0]) - prefix_length(prefix)
        rows = max(1, automatic_batch_tokens(model) // width)
        parts = [
            _run(model, prompts[start : start + rows], prefix)
            for start in range(0, len(prompts), rows)
        ]
        hidden = torch.cat([states for states, _ in parts])
        cache = answer_cache([part for _, part in parts if part is not None], lengths, room=room)
        columns, shift = torch.arange(int(lengths.max())), lengths.max() - lengths[:, None]
        mask = (columns >= shift).long().to(model.device)
    else:
        hidden, cache = _run(model, prompts, None)
        tokens = torch.tensor(prompts, device=model.device) if cache is None else None
    return hidden, _Rows(
        index=list(range(len(prompts))),
        is_live=torch.ones(len(prompts), dtype=torch.bool, device=model.device),
        last=torch.zeros(len(prompts), dtype=torch.long, device=model.device),
        position=lengths.to(model.device) - 1,
        mask=mask,
        cache=cache,
        tokens=tokens,
    )


def _run(
    model: LoadedModel, prompts: Sequence[tuple[int, ...]], prefix: SharedPrefix | None
) -> tuple[Float[Tensor, "row d_model"], DynamicCache | None]:
    """Run prompts padded on the right, the longest first; return their last states and cache."""
    cached = prefix_length(prefix)
    cache: DynamicCache | None = None
    if prefix is not None:
        cache = prefix.growing_cache(len(prompts))
    elif can_share_prefix(model):
        cache = DynamicCache()  # whole, even where a window would do: it is moved afterwards
    elif model.anatomy.cache == "shared":
        cache = DynamicCache(config=model.module.config)
    suffixes = [torch.tensor(ids[cached:]) for ids in prompts]
    output = _backbone(model)(
        input_ids=nn.utils.rnn.pad_sequence(suffixes, batch_first=True).to(model.device),
        use_cache=model.anatomy.cache != "none",
        **_with_cache(model, cache),
    )
    if model.anatomy.cache == "own":
        cache = output.past_key_values
    last = torch.tensor([len(suffix) - 1 for suffix in suffixes], device=model.device)
    rows = torch.arange(len(prompts), device=model.device)
    return output.last_hidden_state[rows, last], cache


def _step(model: LoadedModel, rows: _Rows) -> Float[Tensor, "row d_model"]:
    """Run one token per row."""
    backbone = _backbone(model)
    if rows.cache is None:
        return backbone(input_ids=rows.tokens).last_hidden_state[:, -1]
    takes_positions = "position_ids" in inspect.signature(backbone.forward).parameters
    output = backbone(
        input_ids=rows.last[:, None],
        attention_mask=rows.mask,
        use_cache=True,
        **_with_cache(model, rows.cache),
        **({"position_ids": rows.position[:, None]} if takes_positions else {}),
    )
    return output.last_hidden_state[:, -1]


def _with_cache(model: LoadedModel, cache: Cache | None) -> dict[str, Cache]:
    """Return ``cache`` under the name that the backbone has for it; Mamba has another one."""
    if cache is None:
        return {}
    takes = inspect.signature(_backbone(model).forward).parameters
    name = next((name for name in CACHE_NAMES if name in takes), None)
    if name is None:
        raise UnsupportedArchitectureError(
            f"the backbone of a '{model.anatomy.model_type}' model takes none of "
            f"{', '.join(CACHE_NAMES)}, so its answers cannot be generated token by token. Add "
            "the name of its cache to measure/generation.py."
        )
    return {name: cache}


def _backbone(model: LoadedModel) -> nn.Module:
    return model.module.get_submodule(model.anatomy.backbone)


def _most_probable(head: Head, hidden: Float[Tensor, "row d_model"]) -> Int[Tensor, " row"]:
    best = head.logits(hidden).max(dim=-1)
    if bool(torch.isnan(best.values).any()):  # a maximum over a NaN is NaN
        raise MeasurementError(
            "the model's logits are NaN while generating. Load it with --dtype float32 or bfloat16."
        )
    return best.indices


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


def automatic_rows(model: LoadedModel, tokens: int) -> int:
    """Return how many rows of ``tokens`` run fastest and fit: keys, values and a row of logits."""
    config = model.module.config.get_text_config()
    width = model.anatomy.d_model
    if getattr(config, "num_key_value_heads", None) and getattr(config, "head_dim", None):
        width = config.num_key_value_heads * config.head_dim
    size = torch.empty((), dtype=model.dtype).element_size()
    need = 2 * model.anatomy.n_layers * width * tokens * size + 8 * config.vocab_size
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
