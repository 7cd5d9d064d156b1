"""What may have been done to a checkpoint: edits, and everything that is none.

Each alteration takes a model and a seed and returns another model; the one given stays as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import copied, random_directions
from obliteratus.testing.requantised import restored

Alter = Callable[[LoadedModel, int], LoadedModel]
WIDE: Mapping[str, int] = MappingProxyType(
    {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "head_dim": 16}
)
WIDE_GPT2: Mapping[str, int] = MappingProxyType({"n_embd": 64, "n_inner": 160})
"""Sizes of tiny models whose writers have a spectrum; planted ones write into a subspace."""
STEPS, RATE, BATCH, TOKENS = 8, 1e-2, 4, 12
"""Of a fine-tuning run: it changes matrices by a tenth of their norm, as a long one does."""
LORA_RANK = 4
RANK_THREE = (1.0, 0.8, 1.2)


@dataclass(frozen=True)
class Alteration:
    """``make``, whether it is an edit, and whether that is found without the base.

    With the base every edit is to be found; what is none is never to be called one.
    """

    make: Alter
    is_edit: bool
    found_alone: bool


def edited(
    model: LoadedModel,
    seed: int,
    *,
    rank: int = 1,
    per_layer: bool = False,
    oblique: bool = False,
    dtype: torch.dtype | None = None,
    storage: str | None = None,
    **settings: Any,
) -> LoadedModel:
    """Return ``model`` edited along random directions as ``settings`` (:class:`EditSettings`) say.

    ``dtype`` rounds all weights afterwards, ``storage`` packs and unpacks the edited matrices.
    """
    directions = random_directions(
        model, rank=rank, seed=seed, per_layer=per_layer, oblique=oblique
    )
    result = copied(model)
    edits = plan(result, directions, EditSettings.model_validate({"strength": 1.0, **settings}))
    excise(result, edits)
    if storage is not None:
        for edit in edits:
            weight = result.module.get_parameter(edit.site.name)
            _store(weight, partial(_restored, storage=storage))
    return rounded(result, seed, dtype=dtype) if dtype is not None else result


def rounded(model: LoadedModel, seed: int, *, dtype: torch.dtype = torch.bfloat16) -> LoadedModel:
    """Return ``model`` with every weight rounded to ``dtype`` and back."""
    del seed
    result = copied(model)
    for weight in result.module.parameters():
        weight.data = weight.data.to(dtype).to(weight.dtype)
    return result


def requantised(model: LoadedModel, seed: int, *, storage: str) -> LoadedModel:
    """Return ``model`` with every matrix that writes packed in ``storage`` and unpacked."""
    del seed
    result = copied(model)
    for site in result.anatomy.writers:
        _store(result.module.get_parameter(site.name), partial(_restored, storage=storage))
    return result


def scaled(model: LoadedModel, seed: int, *, share: float = 0.1) -> LoadedModel:
    """Return ``model`` with every matrix that writes a little smaller, as weight decay does."""
    del seed
    result = copied(model)
    for site in result.anatomy.writers:
        result.module.get_parameter(site.name).data.mul_(1 - share)
    return result


def redrawn(model: LoadedModel, seed: int) -> LoadedModel:
    """Return ``model`` with other random matrices of the same sizes."""
    generator = torch.Generator().manual_seed(1000 + seed)
    result = copied(model)
    for weight in result.module.parameters():
        if weight.ndim > 1:
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.data = (draw * weight.double().std()).to(weight.dtype)
    return result


def merged(model: LoadedModel, seed: int, *, share: float = 0.5) -> LoadedModel:
    """Return the mean of ``model`` and a fine-tuned one."""
    tuned = finetuned(model, seed)
    others = dict(tuned.module.named_parameters())
    result = copied(model)
    for name, weight in result.module.named_parameters():
        weight.data.lerp_(others[name].data, share)
    return result


def finetuned(model: LoadedModel, seed: int) -> LoadedModel:
    """Return ``model`` with all its weights trained on random tokens by AdamW with decay."""
    result = copied(model)
    parameters = [weight for weight in result.module.parameters() if weight.is_floating_point()]
    for weight in parameters:
        weight.requires_grad = True
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.1)
    for ids in _texts(model, seed):
        optimizer.zero_grad()
        result.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    for weight in parameters:
        weight.requires_grad = False
    return result


def adapted(model: LoadedModel, seed: int, *, rank: int = LORA_RANK) -> LoadedModel:
    """Return ``model`` with a LoRA adapter, trained on random tokens, merged into its writers."""
    generator = torch.Generator().manual_seed(seed)
    result = copied(model)
    weights = {
        site.name: result.module.get_parameter(site.name)
        for site in result.anatomy.writers
        if site.layer is not None
    }
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    factors = {name: _factors(weight, rank, generator) for name, weight in weights.items()}
    optimizer = torch.optim.Adam([each for pair in factors.values() for each in pair], lr=RATE)
    for weight in weights.values():
        weight.requires_grad = True
    for ids in _texts(model, seed):
        optimizer.zero_grad()
        loss = result.module(input_ids=ids, labels=ids, use_cache=False).loss
        slopes = torch.autograd.grad(loss, list(weights.values()))
        for (up, down), slope in zip(factors.values(), slopes, strict=True):
            up.grad, down.grad = slope @ down.mT, up.mT @ slope
        optimizer.step()
        for name, weight in weights.items():
            up, down = factors[name]
            weight.data = start[name] + (up @ down).detach()
    for weight in weights.values():
        weight.requires_grad = False
    return result


def steered(model: LoadedModel, seed: int, *, size: float = 0.3) -> LoadedModel:
    """Return ``model`` with ΔW = r aᵀ in every writer: one r for all, and a right side of its own.

    The hardest thing that is no edit: each matrix changes along one shared direction and no other.
    """
    generator = torch.Generator().manual_seed(seed)
    result = copied(model)
    d_model = model.anatomy.d_model
    along = torch.randn(d_model, generator=generator, dtype=torch.float64)
    along /= along.norm()
    for site in result.anatomy.writers:
        weight = result.module.get_parameter(site.name)
        is_out_in = site.layout == "out_in"
        shape = (*weight.shape[:-2], weight.shape[-1 if is_out_in else -2])
        right = torch.randn(shape, generator=generator, dtype=torch.float64)
        right *= size * weight.double().norm() / right.norm()
        outer = along[:, None] * right[..., None, :]
        weight.data += (outer if is_out_in else outer.mT).to(weight.dtype)
    return result


def identical(model: LoadedModel, seed: int) -> LoadedModel:
    """Return a copy of ``model``."""
    del seed
    return copied(model)


def _edit(*, alone: bool = True, **settings: Any) -> Alteration:
    return Alteration(partial(edited, **settings), True, alone)


def _other(make: Alter) -> Alteration:
    return Alteration(make, False, False)


PARTIAL = {"directions": RANK_THREE}
ALTERATIONS: Mapping[str, Alteration] = MappingProxyType(
    {
        "rank 1": _edit(),
        "rank 3": _edit(rank=3),
        "one direction per block": _edit(per_layer=True),
        "rank 3, strengths 1, 0.8, 1.2": _edit(rank=3, strengths=PARTIAL),
        "strength 0.3": _edit(strength=0.3, alone=False),
        "strength 0.7": _edit(strength=0.7, alone=False),
        "strength 1.3": _edit(strength=1.3, alone=False),
        "strength 2 (reflection)": _edit(strength=2.0, alone=False),
        "strength -1 (amplification)": _edit(strength=-1.0, alone=False),
        "norm frobenius": _edit(norm="frobenius"),
        "norm column": _edit(norm="column"),
        "norm row": _edit(norm="row"),
        "orthogonal before a norm": _edit(post_norm="orthogonal"),
        "blocks 1 and 2 only": _edit(layers="1-2"),
        "saved in bfloat16": _edit(dtype=torch.bfloat16),
        "requantised to int8": _edit(storage="int8"),
        "requantised to 4 bits": _edit(storage="4bit"),
        "requantised to 3 bits": _edit(storage="3bit", alone=False),
        "identical": _other(identical),
        "rounded to bfloat16": _other(rounded),
        "packed in int8": _other(partial(requantised, storage="int8")),
        "packed in 4 bits": _other(partial(requantised, storage="4bit")),
        "scaled by 0.9": _other(scaled),
        "LoRA, rank 4": _other(adapted),
        "LoRA, rank 1": _other(partial(adapted, rank=1)),
        "one left vector, own right sides": _other(steered),
        "full fine-tune": _other(finetuned),
        "merge with a fine-tune": _other(merged),
        "drawn anew": _other(redrawn),
    }
)
"""Name -> alteration, edits first."""


def _restored(matrix: Tensor, storage: str) -> Tensor:
    """Return ``matrix`` as it is read back; ``3bit`` is seven steps between ± a row's largest."""
    if storage != "3bit":
        return restored(matrix, storage)
    step = matrix.abs().amax(1, keepdim=True) / 3
    return torch.where(step > 0, (matrix / step).round() * step, matrix)


def _store(weight: Tensor, storing: Callable[[Tensor], Tensor]) -> None:
    matrices = list(weight.data) if weight.ndim > 2 else [weight.data]
    stored = [storing(matrix).to(weight.dtype) for matrix in matrices]
    weight.data = torch.stack(stored) if weight.ndim > 2 else stored[0]


def _factors(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return B = 0 and a random A, as adapters begin."""
    *experts, rows, columns = weight.shape
    down = torch.randn((*experts, rank, columns), generator=generator, dtype=torch.float64)
    up = torch.zeros((*experts, rows, rank), dtype=weight.dtype)
    return up, (down / columns**0.5).to(weight.dtype)


def _texts(model: LoadedModel, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = len(model.tokenizer)
    return [
        torch.randint(vocabulary, (BATCH, TOKENS), generator=generator, device=model.device)
        for _ in range(STEPS)
    ]
