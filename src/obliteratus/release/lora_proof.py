"""Load an adapter back with peft and compare it with the hooks that are the reference."""

import contextlib
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.edits.proof import StreamProof, prove_stream
from obliteratus.errors import EditError, LeakError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quantised import sharing_matrices
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.hooks import edited
from obliteratus.release.lora_layers import adapted, check_adapted

LOGIT_TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 0.05,
    torch.bfloat16: 0.1,
}
"""Largest logit gap, as a share of the spread of the logits, that rounding explains by the type of
the base: several times what 30 layers of 135 million parameters show."""


@dataclass(frozen=True)
class Agreement:
    """How the adapter, loaded back, compares with the hooks on the same base and tokens.

    ``logit_gap`` is rms(adapter − hooks), ``logit_change`` rms(hooks − base) and ``logit_spread``
    the standard deviation of the logits under hooks, all over the same tokens. ``stream`` holds
    what is left of the removed directions at every layer and in every write; None where the plan
    removes nothing entirely. ``is_gated`` says that both had to be within rounding, which is asked
    of a base that is not quantised: a quantised one rounds its own products differently.
    """

    logit_gap: float
    logit_change: float
    logit_spread: float
    stream: StreamProof | None
    is_gated: bool

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "stream": None if self.stream is None else self.stream.as_json()}


def load_back(model: LoadedModel, folder: Path, names: Sequence[str]) -> LoadedModel:
    """Return ``model`` with the adapter in ``folder``; matrices are shared, ``model`` is untouched.

    Raises:
        EditError: peft adapts other parameters than ``names``.
        LeakError: peft leaves a tensor of the file unread.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever it would warn of is checked here
        loaded: Any = PeftModel.from_pretrained(sharing_matrices(model.module), folder)
        tensors = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    check_adapted(adapted(loaded), names)
    kept = dict(loaded.base_model.model.named_parameters())
    for key, written in load_file(folder / "adapter_model.safetensors").items():
        read = tensors.get(key, kept.get(key.removeprefix("base_model.model.")))
        if read is None or not torch.equal(written.to(read.dtype), read.cpu()):
            raise LeakError(
                f"peft does not read '{key}' of the adapter back as it was written. Save the "
                "edited weights instead (`obliteratus obliterate`)."
            )
    return dataclasses.replace(model, module=loaded.base_model.model)


@torch.no_grad()
def compare(
    model: LoadedModel,
    adapter: LoadedModel,
    plans: Sequence[EditPlan],
    prompts: Sequence[Sequence[int]],
) -> Agreement:
    """Compare ``adapter`` (from :func:`load_back`) with ``plans`` as hooks on ``model``.

    Raises:
        EditError: the model cannot run with peft's layers in it.
        LeakError: on a base that is not quantised, the logits differ or a removed direction is left
            by more than rounding explains.
    """
    gaps: list[float] = []
    changes: list[float] = []
    spreads: list[float] = []
    for ids in prompts:
        tokens = torch.tensor([list(ids)], device=model.device)
        base = _logits(model, tokens)
        with contextlib.ExitStack() as stack:
            for plan in plans:
                stack.enter_context(edited(model, plan))
            hooked = _logits(model, tokens)
        gaps.append(float((_adapted_logits(adapter, tokens) - hooked).square().mean()))
        changes.append(float((hooked - base).square().mean()))
        spreads.append(float(hooked.var()))
    gap, change, spread = (
        (sum(values) / len(values)) ** 0.5 for values in (gaps, changes, spreads)
    )
    is_gated = model.quantization is None
    if is_gated and not gap <= LOGIT_TOLERANCE[model.dtype] * spread:
        raise LeakError(
            f"the adapter gives other logits than the edit: {gap:.1e} apart (rms; the edit itself "
            f"moves them by {change:.1e}, at most {LOGIT_TOLERANCE[model.dtype] * spread:.0e} is "
            f"rounding in {model.dtype}). peft does not reach a matrix of this "
            f"'{model.anatomy.model_type}' model; save the edited weights instead."
        )
    removes = any(bool((edit.strengths == 1).any()) for edit in plans[-1])
    has_shift = any(edit.bias_shift is not None for plan in plans for edit in plan)
    stream = None
    if removes and not has_shift:
        stream = prove_stream(adapter, plans[-1], prompts, allow_leak=not is_gated)
    return Agreement(gap, change, spread, stream, is_gated)


def _adapted_logits(adapter: LoadedModel, tokens: Tensor) -> Float64[Tensor, "batch token vocab"]:
    try:
        return _logits(adapter, tokens)
    except AttributeError as error:  # the model asks peft's layer for a part of the one it wraps
        raise EditError(
            f"a '{adapter.anatomy.model_type}' model does not run with peft's layers in it "
            f"({error}). Save the edited weights instead (`obliteratus obliterate`)."
        ) from error


def _logits(model: LoadedModel, tokens: Tensor) -> Float64[Tensor, "batch token vocab"]:
    return model.module(input_ids=tokens, use_cache=False).logits.to("cpu", torch.float64)
