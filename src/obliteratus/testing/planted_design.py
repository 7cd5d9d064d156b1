"""What is planted: one value that says which circuit, in which architecture, and how strong."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from obliteratus.errors import UsageError
from obliteratus.testing.planted_prompts import Triggers

Architecture = Literal["llama", "gemma2", "mixtral", "stablelm"]


@dataclass(frozen=True)
class Design:
    """Everything that determines a planted transformer, besides its seed.

    * ``effect`` multiplies the length of what is written along r, so of the swing of the refusal
      log-odds too: 1 gives −6 on harmless and +6 on harmful prompts.
    * ``noise`` is the standard deviation, over prompts, that words add to a coordinate of the
      stream at the last position; r is as noisy as any other direction.
    * ``background`` is the scale of the random weights of every head and column that has no part in
      the circuit, relative to N(0, 1/d_in).
    * ``cone`` is the cosine between the directions of two categories, None for one r for all.
    * ``repair`` ρ: with r removed, a second path restores this share of the swing.
    * ``entanglement`` ε: with r removed, capability answers lose this share of their swing.
    * ``cause``: what is refused, prompts with harm or prompts with a trigger word.
    * ``inert`` is the length of a direction that harm writes and nothing reads, in lengths of r.
    * ``triggers``: which of the model's own prompts have a trigger word.
    """

    architecture: Architecture = "llama"
    effect: float = 1.0
    noise: float = 0.3
    background: float = 0.5
    cone: float | None = None
    repair: float = 0.0
    entanglement: float = 0.0
    cause: Literal["harm", "trigger"] = "harm"
    inert: float = 0.0
    triggers: Triggers = "none"
    is_tied: bool = False
    has_biases: bool = False
    has_sink: bool = False

    def __post_init__(self) -> None:
        """Check that the parts can be planted together.

        Raises:
            UsageError: a value is out of its range, or two parts exclude each other.
        """
        sizes = {"effect": self.effect, "noise": self.noise}
        for name, size in {**sizes, "background": self.background, "inert": self.inert}.items():
            if size < 0:
                raise UsageError(f"{name}={size:g} is a size; give a number of at least 0.")
        if not (0 <= self.repair <= 1 and 0 <= self.entanglement <= 1):
            raise UsageError(
                f"repair={self.repair:g} and entanglement={self.entanglement:g} are shares of a "
                "swing; give numbers from 0 to 1."
            )
        if self.cone is not None and not 0 <= self.cone <= WIDEST_CONE:
            raise UsageError(
                f"cone={self.cone:g}: with a cosine above {WIDEST_CONE:g} one category would "
                f"trigger the readers of the others; give one from 0 to {WIDEST_CONE:g}."
            )
        if self.cone is not None and (self.repair or self.entanglement or self.cause != "harm"):
            raise UsageError("a cone is planted without repair, entanglement or another cause.")
        if self.has_biases and self.architecture != "llama":
            raise UsageError("biases are planted in the llama architecture; leave the other out.")


WIDEST_CONE = 0.2

VARIANTS: Mapping[str, Design] = MappingProxyType(
    {
        "linear": Design(),
        "cone": Design(cone=0.2),
        "backup": Design(repair=0.7),
        "entangled": Design(entanglement=0.4),
        "post_norm": Design("gemma2"),
        "layer_norm": Design("stablelm"),
        "tied": Design(is_tied=True),
        "biases": Design(has_biases=True),
        "experts": Design("mixtral"),
        "sink": Design(has_sink=True),
        "null": Design(cause="trigger", inert=1.0, triggers="independent"),
        "decodable_only": Design(cause="trigger", inert=2.0, triggers="harmful"),
    }
)
"""Name -> design. ``null`` refuses half of the prompts of either class; ``decodable_only`` refuses
all harmful ones, because each has a trigger, while a stronger direction of harm does nothing."""
