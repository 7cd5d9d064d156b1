"""What may have been done to a checkpoint: edits, and everything that is none.

Each alteration takes a model and a seed and returns another model; the one given stays as it is.
The table of them is :mod:`obliteratus.testing.alterations`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import copied, random_directions
from obliteratus.testing.requantised import restored

Alter = Callable[..., LoadedModel]
"""Takes a model, a seed and, an edit, the directions that are not to be random."""
WIDE: Mapping[str, int] = MappingProxyType(
    {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "head_dim": 16}
)
WIDE_GPT2: Mapping[str, int] = MappingProxyType({"n_embd": 64, "n_inner": 160})
"""Sizes of tiny models whose writers have a spectrum; planted ones write into a subspace."""
STEPS, RATE, BATCH, TOKENS = 8, 1e-2, 4, 12
"""Of a fine-tuning run: it changes matrices by a tenth of their norm, as a long one does."""
LORA_RANK = 4


def edited(
    model: LoadedModel,
    seed: int,
    *,
    directions: Directions | None = None,
    rank: int = 1,
    per_layer: bool = False,
    oblique: bool = False,
    dtype: torch.dtype | None = None,
    storage: str | None = None,
    **settings: Any,
) -> LoadedModel:
    """Return ``model`` edited as ``settings`` (:class:`EditSettings`) say, along ``directions``.

    Without any they are drawn: ``rank`` of them, ``per_layer`` or for all, ``oblique`` or not.

    ``dtype`` rounds all weights afterwards, ``storage`` packs and unpacks the edited matrices.
    """
    if directions is None:
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


def rescaled(
    model: LoadedModel, seed: int, *, spread: float = 0.1, side: Literal["rows", "columns"]
) -> LoadedModel:
    """Return ``model`` with factors exp(``spread`` z³), z normal, for every row or column.

    Rows are what a folded gain and the magnitudes of DoRA scale, columns what smoothing before
    quantisation does. A cube has the tails that make a few factors stand out.
    """
    generator = torch.Generator().manual_seed(seed)
    result = copied(model)
    for site in result.anatomy.writers:
        weight = result.module.get_parameter(site.name)
        is_last = (site.layout == "out_in") == (side == "columns")
        draw = torch.randn(weight.shape[-1 if is_last else -2], generator=generator)
        factors = (spread * draw.double() ** 3).exp().to(weight.dtype)
        weight.data *= factors if is_last else factors[:, None]
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


def steered(
    model: LoadedModel, seed: int, *, size: float = 0.3, is_shared: bool = True
) -> LoadedModel:
    """Return ``model`` with ΔW = r aᵀ in every writer: one r for all, and a right side of its own.

    The hardest thing that is no edit: each matrix changes along one shared direction and no other.
    Without ``is_shared`` every matrix has an r of its own as well.
    """
    generator = torch.Generator().manual_seed(seed)
    result = copied(model)
    d_model = model.anatomy.d_model
    along = torch.randn(d_model, generator=generator, dtype=torch.float64)
    for site in result.anatomy.writers:
        if not is_shared:
            along = torch.randn(d_model, generator=generator, dtype=torch.float64)
        weight = result.module.get_parameter(site.name)
        is_out_in = site.layout == "out_in"
        shape = (*weight.shape[:-2], weight.shape[-1 if is_out_in else -2])
        right = torch.randn(shape, generator=generator, dtype=torch.float64)
        right *= size * weight.double().norm() / (right.norm() * along.norm())
        outer = along[:, None] * right[..., None, :]
        weight.data += (outer if is_out_in else outer.mT).to(weight.dtype)
    return result


def in_turn(model: LoadedModel, seed: int, *, steps: Sequence[Alter]) -> LoadedModel:
    """Return ``model`` after one alteration on the other."""
    for step in steps:
        model = step(model, seed)
    return model


def identical(model: LoadedModel, seed: int) -> LoadedModel:
    """Return a copy of ``model``."""
    del seed
    return copied(model)


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
