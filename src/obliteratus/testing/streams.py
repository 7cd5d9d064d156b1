"""Activations made of arrays, as PROBE would return them: what an analysis is tested on."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from obliteratus.probe.activations import Activations, ClassActivations, Moments
from obliteratus.shapes import Layer


def activations_of(
    harmful: Mapping[Layer, Float[Tensor, "harmful position d_model"]],
    harmless: Mapping[Layer, Float[Tensor, "harmless position d_model"]],
    *,
    is_paired: bool = True,
    categories: Sequence[str | None] | None = None,
) -> Activations:
    """Return the activations of both classes, every prompt kept; the last position is −1.

    ``categories`` are those of the harmful prompts, and of the harmless ones too in a paired set.
    """
    positions = next(iter(harmful.values())).shape[1]
    return Activations(
        _side(harmful, categories),
        _side(harmless, categories if is_paired else None),
        positions=tuple(range(-positions, 0)),
        is_paired=is_paired,
        fingerprint="made",
    )


def _side(
    stream: Mapping[Layer, Float[Tensor, "prompt position d_model"]],
    categories: Sequence[str | None] | None,
) -> ClassActivations:
    count = len(next(iter(stream.values())))
    moments: dict[Layer, Moments] = {
        layer: Moments(
            count,
            rows.double().mean(0),
            (rows.double() - rows.double().mean(0)).square().sum(0),
        )
        for layer, rows in stream.items()
    }
    return ClassActivations(
        prompt_ids=tuple(f"p{row}" for row in range(count)),
        categories=(None,) * count if categories is None else tuple(categories),
        moments=moments,
        kept={layer: rows.float() for layer, rows in stream.items()},
    )
