"""Weights that work through a norm: rows that read behind one, signals that pass one."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.testing.planted_circuit import Read


@dataclass(frozen=True)
class ReadNorm:
    """A norm in front of reading rows, and what they must undo of it.

    The norm divides by ``scale``, multiplies by ``gain`` and adds ``bias``. ``level`` is the length
    of the stream along ``constant``, and ``offset`` what biases have written to it before.
    """

    scale: float
    gain: Float64[Tensor, " d_model"]
    bias: Float64[Tensor, " d_model"]
    constant: Float64[Tensor, " d_model"]
    level: float
    offset: Float64[Tensor, " d_model"]

    def rows(
        self,
        along: Float64[Tensor, "row d_model"],
        biases: Float64[Tensor, " row"],
        own: Float64[Tensor, " row"],
    ) -> Float64[Tensor, "row d_model"]:
        """Return rows whose products with the normed stream, plus ``own``, are along · x + bias."""
        rows = self.scale * along / self.gain
        steady = self.scale * self.constant / self.gain
        there = rows @ self.bias + along @ self.offset + own
        height = self.level + float(steady @ self.bias)
        return rows + ((biases - there) / height)[:, None] * steady

    def row(self, read: Read, own: float = 0.0) -> Float64[Tensor, " d_model"]:
        """Return the row whose product with the normed stream, plus ``own``, is ``read``."""
        numbers = torch.tensor([[read.bias], [own]], dtype=torch.float64)
        return self.rows(read.along[None], *numbers)[0]


def scale_before(steady: Float64[Tensor, " d_model"], signal: Float64[Tensor, " d_model"]) -> float:
    """Return κ with which a signal must be written so that it leaves a norm as it should be.

    The norm makes √d z / |z| of z = steady + κ signal, so κ solves d κ² = |steady + κ signal|².
    """
    across, room = float(steady @ signal), len(steady) - float(signal @ signal)
    return (across + (across**2 + room * float(steady @ steady)) ** 0.5) / room
