"""What an extractor returns: a basis per layer, and how far it can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from obliteratus.operator.removal import SiteStrengths
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate


@dataclass(frozen=True)
class Directions:
    """Orthonormal patterns per layer; row 0 of each points towards refusal (+r).

    ``basis`` maps each layer to float64 rows. A single selected direction appears under every
    layer. ``source_layer`` and ``position`` say where it was read (None when each layer has its
    own). ``strength`` is the one that the select prompts support: 1, or more where that was allowed
    and lowered refusal further. ``strengths`` multiply it per layer, component and direction where
    DISTILL tuned them (None: all 1). ``scale`` is ‖δ‖ per layer: the unit of steering. ``mean`` is
    the mean of the harmless prompts where the directions were read, None when each layer has its
    own. ``strong_layers`` are those ranked strong. ``reliability`` holds split-half cosine,
    bootstrap angle, permutation p and top-coordinate share. ``provenance`` is JSON-ready:
    extractor, settings, prompt hash, model fingerprint, and the selection table with its intervals.
    """

    basis: Mapping[Layer, Float64[Tensor, "rank d_model"]]
    scale: Mapping[Layer, float]
    method: str
    source_layer: Layer | None = None
    position: int | None = None
    strength: float = 1.0
    strengths: SiteStrengths | None = None
    mean: Float64[Tensor, " d_model"] | None = None
    strong_layers: tuple[int, ...] = ()
    reliability: Mapping[str, Estimate] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest number of directions at any layer."""
        return max((rows.shape[0] for rows in self.basis.values()), default=0)
