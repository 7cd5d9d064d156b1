"""The language-model head as a value: from final-norm outputs to logits, a few rows at a time.

Measurements keep final hidden states (d_model numbers per token) and never the logits (vocabulary
numbers per token); the head turns the former into the latter when they are needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from obliteratus.errors import MeasurementError, UnsupportedArchitectureError
from obliteratus.models.loaded import LoadedModel

LOGIT_ROWS = 128  # rows of logits alive at once: 128 x 152k x 4 bytes = 78 MB
DIVIDED = (
    "granite",
    "minicpm",
)  # model types whose ``logits_scaling`` divides; elsewhere it multiplies
CHECK_TOKENS = 2  # tokens that are run to check a head against its model
CHECK_ULPS = 64  # rounding allowed in that check: the same products, possibly summed differently


@dataclass(frozen=True)
class Head:
    """logits = cap · tanh(m (W h + b) / cap), with m = ``multiplier``; no cap: m (W h + b).

    ``weight`` and ``bias`` are those of the model, not copies: an edit in place changes them.
    """

    weight: Float[Tensor, "vocab d_model"]
    bias: Float[Tensor, " vocab"] | None = None
    multiplier: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Return the logits of ``hidden`` in the dtype and on the device of the weight."""
        rows = hidden.to(self.weight)
        logits = nn.functional.linear(rows, self.weight, self.bias)
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def log_probabilities(
        self, hidden: Float[Tensor, "*rows d_model"]
    ) -> Float[Tensor, "*rows vocab"]:
        """Return log_softmax of the logits, in float32 (float64 where the weight is).

        Raises:
            MeasurementError: a logit is NaN or infinite.
        """
        logits = self.logits(hidden)
        ends = torch.aminmax(logits, dim=-1)  # one pass without a copy, and NaN shows in both
        is_bad = ~(torch.isfinite(ends.min) & torch.isfinite(ends.max))
        if bool(is_bad.any()):
            raise MeasurementError(
                f"{int(is_bad.sum())} of {is_bad.numel()} positions have NaN or infinite logits. "
                "Load the model with --dtype float32 or bfloat16; if that does not help, its "
                "weights are damaged."
            )
        return torch.log_softmax(logits, dim=-1, dtype=_at_least_float32(logits.dtype))


def head_logits(
    model: LoadedModel, hidden: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows vocab"]:
    """Return the logits that ``model`` gives for final-norm outputs ``hidden``.

    Raises:
        UnsupportedArchitectureError: see :func:`head_of`.
    """
    return head_of(model).logits(hidden)


@torch.no_grad()
def head_of(model: LoadedModel) -> Head:
    """Return the head of ``model``, with the scale and soft cap that its configuration declares.

    The head is checked on the spot: two tokens are run through the whole model, and its logits must
    be those of the returned head.

    Raises:
        UnsupportedArchitectureError: the model does something else between its head and its logits.
        MeasurementError: the head's weight is not in memory (offloaded), or the logits are NaN.
    """
    module = model.module.get_submodule(model.anatomy.head)
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    if weight.is_meta:
        raise MeasurementError(
            f"the head '{model.anatomy.head}' is offloaded. Give --device-map enough memory for it."
        )
    config = model.module.config.get_text_config()
    head = Head(weight.detach(), bias, _multiplier(config), _softcap(config))
    _check(model, head)
    return head


def chunks(
    hidden: Float[Tensor, "row d_model"], rows: int = LOGIT_ROWS
) -> Iterator[Float[Tensor, "chunk d_model"]]:
    """Yield ``hidden`` in pieces of at most ``rows`` rows, in order."""
    for start in range(0, hidden.shape[0], rows):
        yield hidden[start : start + rows]


def _multiplier(config: PretrainedConfig) -> float:
    """Return the scale between head and logits: Granite divides, Cohere and Falcon-H1 multiply."""
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None and str(config.model_type).startswith(DIVIDED):
        return 1.0 / float(scaling)
    names = ("logits_scaling", "logit_scale", "lm_head_multiplier")
    found = [value for name in names if (value := getattr(config, name, None)) is not None]
    return float(found[0]) if found else 1.0


def _softcap(config: PretrainedConfig) -> float | None:
    names = ("final_logit_softcapping", "logits_soft_cap")
    found = [value for name in names if (value := getattr(config, name, None)) is not None]
    return float(found[0]) if found else None


def _check(model: LoadedModel, head: Head) -> None:
    """Compare ``head`` with the logits of a real forward pass."""
    inputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Any) -> None:
        inputs.append(output.last_hidden_state)

    backbone = model.module.get_submodule(model.anatomy.backbone)
    handle = backbone.register_forward_hook(keep)
    try:
        token_ids = torch.arange(CHECK_TOKENS, device=model.device)[None]
        expected = model.module(input_ids=token_ids, use_cache=False).logits
    finally:
        handle.remove()
    if bool(torch.isnan(expected).any()):
        raise MeasurementError(
            "the model's logits are NaN. Load it with --dtype float32 or bfloat16; if that does "
            "not help, its weights are damaged."
        )
    found = head.logits(inputs[0]).to(expected)
    scale = max(1e-6, float(expected.abs().max()))
    error = float((found - expected).abs().max()) / scale
    if not error <= CHECK_ULPS * torch.finfo(head.weight.dtype).eps:
        raise UnsupportedArchitectureError(
            f"the logits of a {model.anatomy.model_type} model differ from those of its head "
            f"'{model.anatomy.head}' by {error:.1e} of their size: it scales or caps them in a way "
            "that measure/head.py does not know. Add its configuration key there."
        )


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
