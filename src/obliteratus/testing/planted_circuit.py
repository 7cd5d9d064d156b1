"""A circuit in terms of the stream: what reads which direction and writes which, and what follows.

Nothing here knows of weights. :meth:`Circuit.at_last_token` computes what a circuit does in an
idealised stream without noise, and so what is to be expected of the model that
:mod:`obliteratus.testing.planted_weights` makes of it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.shapes import Layer

Part = Literal["attention", "mlp"]
Role = Literal[
    "opening",
    "next token",
    "clearing",
    "writer",
    "inert",
    "capability",
    "backup",
    "lookup",
    "reader",
    "veto",
]
Place = tuple[int, Part]
"""Where a norm reads the stream: before this part of this layer."""
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Read:
    """The number ``along`` · x + ``bias`` of a stream x."""

    along: Float64[Tensor, " d_model"]
    bias: float = 0.0


@dataclass(frozen=True)
class Unit:
    """A column of a gated MLP: act(gate(x)) · up(x) · ``write`` is added to the stream."""

    layer: int
    role: Role
    gate: Read
    up: Read
    write: Float64[Tensor, " d_model"]


@dataclass(frozen=True)
class Copy:
    """A head that the last token uses to fetch features from wherever they are.

    ``key`` is 1 at the tokens it looks for, and half of that at the first token, to which it looks
    where there are none. For each feature, ``reads`` is 1 at a token that has it, and ``writes`` is
    what the last token gets then.
    """

    layer: int
    name: str
    key: Read
    reads: Mapping[str, Read]
    writes: Mapping[str, Float64[Tensor, " d_model"]]


@dataclass(frozen=True)
class Trace:
    """The stream at the last token, idealised: before each part of each layer, and at the end.

    ``read`` is the end as the head reads it, whose rows were made for one length.
    """

    before: Mapping[Place, Float64[Tensor, " d_model"]]
    end: Float64[Tensor, " d_model"]
    read: Float64[Tensor, " d_model"]


@dataclass(frozen=True)
class Circuit:
    """Copies and units; ``start`` is the last token's embedding.

    ``constants`` is what a part of a layer writes whatever it reads: biases, and what keeps a norm
    behind it from turning with its signal. Units do not see it: their biases make up for it.
    ``made_for`` holds the streams that reading rows were made for: at another length a norm changes
    what they read, and at another height along ``constant`` their biases are others. ``noise`` is
    the energy of noise in the stream; ``gains`` are those of a norm behind a part.
    """

    n_layers: int
    start: Float64[Tensor, " d_model"]
    constant: Float64[Tensor, " d_model"]
    copies: tuple[Copy, ...]
    units: tuple[Unit, ...]
    activation: Activation
    constants: Mapping[Place, Float64[Tensor, " d_model"]] = field(
        default_factory=dict[Place, Tensor]
    )
    made_for: Mapping[Place | Literal["end"], Float64[Tensor, " d_model"]] = field(
        default_factory=dict[Place | Literal["end"], Tensor]
    )
    noise: float = 0.0
    gains: Mapping[Place, Float64[Tensor, " d_model"]] = field(default_factory=dict[Place, Tensor])

    def length(self, stream: Float64[Tensor, " d_model"]) -> float:
        """Return the length of ``stream`` with its noise."""
        return float(stream @ stream + self.noise) ** 0.5

    def offset(self, layer: int, part: Part) -> Float64[Tensor, " d_model"]:
        """Return the sum of the constants that were written before ``part`` of ``layer`` reads."""
        total = torch.zeros_like(self.start)
        for (at, which), vector in self.constants.items():
            if at < layer or (at == layer and which == "attention" and part == "mlp"):
                total = total + vector
        return total

    def at_last_token(
        self,
        features: Collection[str] = (),
        *,
        removed: Float64[Tensor, "rank d_model"] | None = None,
        strength: float = 1.0,
        added: Mapping[Layer, Float64[Tensor, " d_model"]] | None = None,
        without: Collection[Unit] = (),
    ) -> Trace:
        """Return the stream at the last token of a prompt with ``features``.

        ``removed`` (orthonormal rows) takes ``strength`` of its span out of every write, ``added``
        adds vectors behind layers, and ``without`` leaves units out.
        """
        extra = added or {}
        basis = self.start[None] * 0 if removed is None else removed

        def written(place: Place, writes: Iterable[Tensor]) -> Tensor:
            total = sum(writes, self.constants.get(place, torch.zeros_like(self.start)))
            kept = total - strength * (total @ basis.T) @ basis
            if place not in self.gains:
                return kept
            return kept * len(kept) ** 0.5 / (kept / self.gains[place]).norm()

        stream = self.start - strength * (self.start @ basis.T) @ basis
        stream = stream + extra.get("embedding", 0.0)
        before: dict[Place, Tensor] = {}
        for layer in range(self.n_layers):
            before[layer, "attention"] = stream
            fetched = [
                copy.writes[name]
                for copy in self.copies
                for name in features
                if copy.layer == layer and name in copy.writes
            ]
            stream = stream + written((layer, "attention"), fetched)
            before[layer, "mlp"] = stream
            units = [unit for unit in self.units if unit.layer == layer]
            outputs = [
                self._output(unit, stream)
                for unit in units
                if all(unit is not other for other in without)
            ]
            stream = stream + written((layer, "mlp"), outputs) + extra.get(layer, 0.0)
        return Trace(before, stream, stream * self._scale("end", stream))

    def _scale(self, place: Place | Literal["end"], stream: Tensor) -> float:
        made_for = self.made_for.get(place, stream)
        return self.length(made_for) / self.length(stream)

    def _output(self, unit: Unit, stream: Tensor) -> Tensor:
        place: Place = (unit.layer, "mlp")
        scale, seen = self._scale(place, stream), stream - self.offset(*place)
        usual = float(self.made_for.get(place, stream) @ self.constant)
        height = float(stream @ self.constant) / usual
        gate, up = (
            scale * (seen @ read.along + height * read.bias) for read in (unit.gate, unit.up)
        )
        return self.activation(gate) * up * unit.write
