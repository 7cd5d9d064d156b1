"""The token prefix that all prompts share, run once; its keys and values serve every batch.

Attention is causal, so the keys and values of a common prefix are the same for every prompt: they
are computed with batch 1 (one row for each variant of the model, where there are several) and
broadcast to each batch. Every layer keeps the whole prefix, sliding
windows included: their masks go by absolute position, so nothing outside a window is attended to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from obliteratus.errors import MeasurementError
from obliteratus.models.loaded import LoadedModel

SHAREABLE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers that hold keys and values only. Recurrent and compressed states are not in it."""


class PrefixLayer(DynamicLayer):
    """Keys and values of the prefix, read by every row of a batch and never changed."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """``keys`` and ``values`` have the axes ``row head token d_head``, with one row or all."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys = self._prefix_keys = keys
        self.values = self._prefix_values = values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Return the prefix followed by the new states, for as many rows as these have."""
        rows = key_states.shape[0]
        keys = self._prefix_keys.expand(rows, -1, -1, -1)
        values = self._prefix_values.expand(rows, -1, -1, -1)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@dataclass(frozen=True)
class SharedPrefix:
    """Keys and values of ``token_ids`` per layer, with the axes ``row head token d_head``.

    There is one row for every batch, or one for each variant of a model.
    """

    token_ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    def at(self, rows: Sequence[int]) -> "SharedPrefix":
        """Return the prefix of a batch whose rows take those of ``rows`` here."""
        index = torch.tensor(rows, device=self.keys[0].device)
        keys, values = (
            tuple(part.index_select(0, index.to(part.device)) for part in parts)
            for parts in (self.keys, self.values)
        )
        return SharedPrefix(self.token_ids, keys, values)

    def cache(self) -> Cache:
        """Return a cache that any number of batches can read, one after the other."""
        pairs = zip(self.keys, self.values, strict=True)
        return Cache(layers=[PrefixLayer(keys, values) for keys, values in pairs])

    def growing_cache(self, rows: int) -> DynamicCache:
        """Return a cache for generation: the prefix for ``rows`` rows, to which tokens are added.

        The prefix is a broadcast view; it is copied when the first token is added.
        """
        cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            shape = (rows, -1, -1, -1)
            cache.update(keys.expand(shape), values.expand(shape), index)
        return cache


def can_share_prefix(model: LoadedModel) -> bool:
    """Return whether the model's configuration declares keys and values as its only state.

    A state-space or linear-attention layer carries a recurrent state, which this module does not
    broadcast; such a model runs without the prefix, as does one with a cache of its own or none.
    The last layers of a model may keep nothing and read what an earlier one keeps (Gemma 3n).
    """
    if model.anatomy.cache != "shared":
        return False
    reading = getattr(model.module.config.get_text_config(), "num_kv_shared_layers", None) or 0
    keeping = model.anatomy.n_layers - reading
    declared = DynamicCache(config=model.module.config).layers
    return keeping <= len(declared) <= model.anatomy.n_layers and all(
        type(layer) in SHAREABLE_LAYERS for layer in declared[:keeping]
    )


def shared_prefix(
    model: LoadedModel, token_ids: tuple[int, ...], *, rows: int = 1, gradients: bool = False
) -> SharedPrefix:
    """Run ``token_ids`` once, under whatever hooks are active, and keep its keys and values.

    ``rows`` run it so many times in one batch, where hooks make a difference between rows. With
    ``gradients`` they keep their graph, for one backward pass.

    Raises:
        MeasurementError: the model keeps other state than keys and values
            (:func:`can_share_prefix` is false).
    """
    if not can_share_prefix(model):
        raise MeasurementError(
            f"the state of a {model.anatomy.model_type} model after a prefix cannot be shared "
            "between prompts. Ask can_share_prefix first and run the whole prompts."
        )
    cache = DynamicCache()
    backbone = model.module.get_submodule(model.anatomy.backbone)
    with torch.set_grad_enabled(gradients):
        backbone(
            input_ids=torch.tensor([token_ids] * rows, device=model.device),
            past_key_values=cache,
            use_cache=True,
        )
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    keys = tuple(layer.keys for layer in layers if layer.keys is not None)
    values = tuple(layer.values for layer in layers if layer.values is not None)
    return SharedPrefix(token_ids, keys, values)
