"""The rows of a batch while they are answered: run, aligned, moved on by a token, and dropped.

Prompts are run padded on the right, where causal attention does not see the padding; then keys and
values are moved so that all rows end in the same column. In that layout the distances between
tokens, and so sliding windows, are those of an unpadded row, and columns before it are masked.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from obliteratus.errors import UnsupportedArchitectureError
from obliteratus.measure.answer_cache import answer_cache
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import automatic_batch_tokens, prefix_length
from obliteratus.probe.prefix import SharedPrefix, can_share_prefix
from obliteratus.probe.variants import Variants

WORTH_DROPPING = 0.9  # rows are dropped when this share of a batch is enough: it copies the cache
CACHE_NAMES = ("past_key_values", "cache_params")


@dataclass(frozen=True)
class Batch:
    """Prompts that are answered together, the tokens that they share, and how long answers get.

    ``variants`` are those of the prompts by their place here; the prefix has a row for each then.
    """

    prompts: Sequence[tuple[int, ...]]
    prefix: SharedPrefix | None
    max_new_tokens: int
    variants: Variants | None = None

    def prefix_for(self, rows: Sequence[int]) -> SharedPrefix | None:
        """Return the prefix of the next pass, which is over ``rows``."""
        return self.prefix if self.variants is None else self.variants.begin(rows, self.prefix)


@dataclass
class Rows:
    """The rows of a batch, aligned at their last token; ``is_live`` marks those being written.

    ``mask`` is None for a model with a recurrent state: nothing is padded there, and some take a
    mask of more columns than the one that they run for more tokens. ``tokens`` are all so far where
    a model has no cache, and each step runs them again.
    """

    index: list[int]
    is_live: list[bool]
    last: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    mask: Int[Tensor, "row column"] | None
    cache: Cache | None
    tokens: Int[Tensor, "row token"] | None = None

    def drop_finished(self, fewest: int) -> None:
        """Drop finished rows, keys and values included, where that makes steps faster."""
        count = max(sum(self.is_live), min(fewest, len(self.index)))
        if count > WORTH_DROPPING * len(self.index):
            return
        kept = sorted(range(len(self.index)), key=lambda row: not self.is_live[row])[:count]
        self.index = [self.index[row] for row in kept]
        self.is_live = [self.is_live[row] for row in kept]
        rows = torch.tensor(kept, device=self.last.device)
        self.last, self.position = self.last[rows], self.position[rows]
        self.mask = None if self.mask is None else self.mask[rows]
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


def prefill(model: LoadedModel, batch: Batch) -> tuple[Float[Tensor, "row d_model"], Rows]:
    """Run the prompts; return the states at their last tokens and the rows aligned there.

    Their cache has room for their answers, unless the model keeps other state than keys and values:
    then all prompts have one length, and nothing is moved.
    """
    prompts, prefix, room = batch.prompts, batch.prefix, batch.max_new_tokens
    lengths = torch.tensor([len(ids) for ids in prompts])
    mask = tokens = None
    cache: Cache | None
    if can_share_prefix(model):
        width = len(prompts[0]) - prefix_length(prefix)
        rows = max(1, automatic_batch_tokens(model) // width)
        places = range(len(prompts))
        parts = [
            _run(model, prompts[start : start + rows], batch.prefix_for(places[start:][:rows]))
            for start in range(0, len(prompts), rows)
        ]
        hidden = torch.cat([states for states, _ in parts])
        cache = answer_cache([part for _, part in parts if part is not None], lengths, room=room)
        columns, shift = torch.arange(int(lengths.max())), lengths.max() - lengths[:, None]
        mask = (columns >= shift).long().to(model.device)
    else:
        hidden, cache = _run(model, prompts, batch.prefix_for(range(len(prompts))))
        tokens = torch.tensor(prompts, device=model.device) if cache is None else None
    return hidden, Rows(
        index=list(range(len(prompts))),
        is_live=[True] * len(prompts),
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


def step(
    model: LoadedModel, rows: Rows, variants: Variants | None = None
) -> Float[Tensor, "row d_model"]:
    """Run one token per row, each of its variant."""
    backbone = _backbone(model)
    if variants is not None:
        variants.begin(rows.index, None)
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
            "the name of its cache to measure/answer_rows.py."
        )
    return {name: cache}


def _backbone(model: LoadedModel) -> nn.Module:
    return model.module.get_submodule(model.anatomy.backbone)
