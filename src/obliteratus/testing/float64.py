"""A context in which transformers computes float64 models in float64 throughout.

Its norms, softmaxes and routers cast to float32 by name, also in a ``.double()`` model, which hides
an error of 1e-8 behind rounding of the same size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_CASTS: frozenset[Callable[..., Any]] = frozenset({Tensor.to, Tensor.type})
_SOFTMAXES: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.softmax,
        functional.log_softmax,
        torch.softmax,
        torch.log_softmax,
        Tensor.softmax,
        Tensor.log_softmax,
    }
)


class ExactFloat64(TorchFunctionMode):
    """Leave float64 tensors in float64 where code asks for float32; other types are untouched.

    Covers ``x.float()``, ``x.to(torch.float32)``, ``x.type(torch.float32)`` and
    ``softmax(x, dtype=torch.float32)``. ``torch.full`` of a number that only float64 holds is
    float64 without being told (XGLM's mask).
    """

    @no_type_check  # called for every operation: a check of its types would cost most of the time
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` with every request for float32 on a float64 tensor taken out."""
        del types
        named = dict(kwargs or {})
        if func is torch.full and "dtype" not in named and _is_beyond_float32(args):
            return func(*args, **named, dtype=torch.float64)
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype == torch.float64:
            if func is Tensor.float:
                return first
            if func in _CASTS or func in _SOFTMAXES:
                args = tuple(_kept(arg) for arg in args)
                named = {key: _kept(value) for key, value in named.items()}
        return func(*args, **named)


def _is_beyond_float32(args: tuple[Any, ...]) -> bool:
    value = args[1] if len(args) > 1 else None
    limit = torch.finfo(torch.float32).max
    return isinstance(value, float) and limit < abs(value) < math.inf


def _kept(argument: object) -> object:
    return torch.float64 if argument is torch.float32 else argument
