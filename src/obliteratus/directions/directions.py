"""What an extractor returns: a basis per layer, and how far it can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from obliteratus.events import Deviation
from obliteratus.operator.removal import SiteStrengths
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate


@dataclass(frozen=True)
class Directions:
    """Orthonormal patterns per layer; row 0 of each points towards refusal (+r).

    ``basis`` maps each layer to float64 rows R, the patterns. ``filters`` maps the same layers to
    rows V with V Rᵀ = I, and the edit is I − RᵀV; empty where it is orthogonal, V = R. A single
    selected direction appears under every layer. ``source_layer`` and ``position`` say where it was
    read (None when each layer has its own). ``strength`` is the one that the select prompts
    support: 1, or more where that was allowed and lowered refusal further. ``strengths`` multiply
    it per layer, component and direction where they were tuned (None: all 1). ``scale`` is ‖δ‖ per
    layer: the unit of steering. ``mean`` is the mean of the harmless prompts where the directions
    were read (with filters, that of all prompts), None when each layer has its own.
    ``strong_layers`` are those ranked strong; empty is undetermined. ``method`` is the extractor,
    or ``rdo`` or ``cone`` where gradients went on from it, ``knobs`` what was set of it.
    ``reliability`` holds split-half cosine, bootstrap angle, permutation p and top-coordinate share
    of row 0 as extracted, under ``filter_`` of its filter. ``provenance`` is JSON-ready: extractor,
    settings, prompt hash, model fingerprint, the rank of every layer, and the selection table with
    its intervals.
    """

    basis: Mapping[Layer, Float64[Tensor, "rank d_model"]]
    scale: Mapping[Layer, float]
    method: str
    source_layer: Layer | None = None
    position: int | None = None
    strength: float = 1.0
    strengths: SiteStrengths | None = None
    mean: Float64[Tensor, " d_model"] | None = None
    filters: Mapping[Layer, Float64[Tensor, "rank d_model"]] = field(
        default_factory=dict[Layer, Tensor]
    )
    strong_layers: tuple[int, ...] = ()
    knobs: Mapping[str, float] = field(default_factory=dict[str, float])
    reliability: Mapping[str, Estimate] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def extractor(self) -> str:
        """The extractor: ``method``, or what an optimisation by gradient began with."""
        return self.provenance.get("rdo", {}).get("extractor", self.method)

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """What was asked of the search for these directions and not done."""
        return tuple(Deviation(**each) for each in self.provenance.get("deviations", ()))

    @property
    def read(self) -> Mapping[Layer, Float64[Tensor, "rank d_model"]]:
        """What the edit reads along, and leaves nothing of: the filters, or else the patterns."""
        return self.filters or self.basis

    @property
    def rank(self) -> int:
        """The largest number of directions at any layer."""
        return max((rows.shape[0] for rows in self.basis.values()), default=0)
