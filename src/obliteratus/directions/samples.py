"""What an extractor sees: the activations of both classes at one layer and position."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import DirectionError
from obliteratus.probe.activations import Activations
from obliteratus.registry import Registry
from obliteratus.shapes import Layer


@dataclass(frozen=True)
class Samples:
    """Both classes at one layer and position, and their mean difference.

    ``delta`` is δ = μ_harmful − μ_harmless. Where ``is_paired``, row i of both classes is one
    minimal pair, and ``categories`` are those of the pairs (of the harmful prompts, None where
    unknown). ``harmless_means`` are the means of the harmless class after every block at the same
    position, where they are known.
    """

    delta: Float64[Tensor, " d_model"]
    harmful: Float[Tensor, "harmful d_model"]
    harmless: Float[Tensor, "harmless d_model"]
    is_paired: bool
    harmless_means: Float64[Tensor, "layer d_model"] | None = None
    categories: tuple[str | None, ...] = ()

    @cached_property
    def differences(self) -> Float64[Tensor, "pair d_model"]:
        """Pair differences; for an unpaired set, each harmful prompt minus the harmless mean."""
        harmful, harmless = self.harmful.to(torch.float64), self.harmless.to(torch.float64)
        return harmful - harmless if self.is_paired else harmful - harmless.mean(0)

    def subset(self, rows: list[int], harmless_rows: list[int] | None = None) -> "Samples":
        """Return the samples of ``rows`` only, δ recomputed; a row may be there more than once.

        ``harmless_rows`` are those of the harmless class where they are not the same, which pairs
        do not allow.
        """
        others = rows if harmless_rows is None else harmless_rows
        harmful, harmless = self.harmful[rows], self.harmless[others]
        delta = harmful.to(torch.float64).mean(0) - harmless.to(torch.float64).mean(0)
        categories = tuple(self.categories[row] for row in rows) if self.categories else ()
        return replace(self, delta=delta, harmful=harmful, harmless=harmless, categories=categories)


Extractor = Callable[..., Float64[Tensor, "rank d_model"]]
"""``extract(samples, *, max_rank) -> basis``: orthonormal rows, row 0 with a positive part of δ."""

EXTRACTORS: Registry[Extractor] = Registry("extractor", "obliteratus.directions")


def samples_at(activations: Activations, layer: Layer, position: int) -> Samples:
    """Return the samples of ``activations`` at ``layer`` and ``position`` (negative, from the end).

    Raises:
        DirectionError: the layer or position was not captured, or only moments were kept.
    """
    if layer not in activations.harmful.kept:
        raise DirectionError(
            f"no prompt activations were kept at layer {layer}; probe with keep='prompts' and that "
            "layer."
        )
    if position not in activations.positions:
        raise DirectionError(
            f"position {position} was not captured, only {activations.positions}; set "
            "probe.positions=post_instruction."
        )
    index = activations.positions.index(position)
    moments = activations.harmless.moments
    means = [moments[block].mean[index] for block in activations.layers if block != "embedding"]
    return Samples(
        activations.difference(layer)[index],
        activations.harmful.kept[layer][:, index],
        activations.harmless.kept[layer][:, index],
        activations.is_paired,
        torch.stack(means) if means else None,
        activations.harmful.categories,
    )


def unit_delta(samples: Samples) -> Float64[Tensor, "1 d_model"]:
    """Return δ / ‖δ‖ as a basis of rank 1.

    Raises:
        DirectionError: δ is zero or not finite.
    """
    return unit(samples.delta)


def unit(difference: Float64[Tensor, " d_model"]) -> Float64[Tensor, "1 d_model"]:
    """Return a ``difference`` of the centres of both classes at unit length, as a basis of rank 1.

    Raises:
        DirectionError: it is zero or not finite.
    """
    norm = difference.norm()
    if not bool(torch.isfinite(norm)) or float(norm) == 0.0:
        raise DirectionError(
            "the class means do not differ (or are not finite), so there is no direction; check "
            "that the harmful and harmless prompts are different."
        )
    return (difference / norm)[None]


def signed_by_delta(
    rows: Float64[Tensor, "rank d_model"], delta: Float64[Tensor, " d_model"]
) -> Float64[Tensor, "rank d_model"]:
    """Turn each row so that its dot product with ``delta`` is not negative: +r is refusal."""
    sign = torch.where(rows @ delta < 0, -1.0, 1.0).to(rows.dtype)
    return rows * sign[:, None]
