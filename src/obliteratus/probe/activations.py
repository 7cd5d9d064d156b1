"""What PROBE returns: the residual stream at chosen positions, kept or as streamed moments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.shapes import Layer

PromptClass = Literal["harmful", "harmless"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and per-coordinate sum of squared deviations, accumulated in float64."""

    count: int
    mean: Float64[Tensor, "position d_model"]
    squared_deviation: Float64[Tensor, "position d_model"]


@dataclass(frozen=True)
class ClassActivations:
    """The stream of one class of prompts.

    ``categories`` are those of the prompts, None where unknown. ``kept`` maps a layer to every
    prompt's activations (float32, in the order of ``prompt_ids``); it is empty when only moments
    were streamed. ``moments`` is always filled.
    """

    prompt_ids: tuple[str, ...]
    categories: tuple[str | None, ...]
    moments: Mapping[Layer, Moments]
    kept: Mapping[Layer, Float[Tensor, "prompt position d_model"]]


@dataclass(frozen=True)
class Activations:
    """Both classes at the same layers and positions.

    ``positions`` count from the end of the prompt: -1 is the last token. ``is_paired`` says that
    row i of both classes is one minimal pair. ``fingerprint`` is that of the model that was probed.
    """

    harmful: ClassActivations
    harmless: ClassActivations
    positions: tuple[int, ...]
    is_paired: bool
    fingerprint: str

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The captured layers: ``embedding`` first, then the blocks in order."""
        return tuple(self.harmful.moments)

    def difference(self, layer: Layer) -> Float64[Tensor, "position d_model"]:
        """Return δ = μ_harmful − μ_harmless at ``layer``: it points towards refusal."""
        return self.harmful.moments[layer].mean - self.harmless.moments[layer].mean
