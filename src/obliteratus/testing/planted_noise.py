"""What is random in a planted transformer: gains, biases, unused weights and the noise of words."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.testing.planted_design import Design
from obliteratus.testing.planted_frame import D_MODEL, Frame
from obliteratus.testing.planted_norms import ReadNorm
from obliteratus.testing.planted_prompts import MEAN_WORDS
from obliteratus.testing.planted_refusal import CODE

GAINS = (0.6, 1.4)
BIAS = 0.1  # standard deviation of biases
ROGUE = 50.0  # noise of the sink coordinate, relative to that of others
TEMPLATE_TOKENS = 4


class Noise:
    """A source of everything random, in the order in which it is asked for."""

    def __init__(self, frame: Frame, design: Design, seed: int) -> None:
        """Draw from ``seed`` on."""
        self._frame, self._design = frame, design
        self._noisy = frame.noisy()
        self._source = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(*shape, generator=self._source, dtype=torch.float64)

    def order(self, count: int) -> list[int]:
        """Return the numbers below ``count`` in a random order."""
        return torch.randperm(count, generator=self._source).tolist()

    def gain(self) -> Float64[Tensor, " d_model"]:
        """Return the gains of a norm, around 1."""
        low, high = GAINS
        drawn = torch.rand(D_MODEL, generator=self._source, dtype=torch.float64)
        return low + (high - low) * drawn

    def quiet_bias(self) -> Float64[Tensor, " d_model"]:
        """Return a bias of a writer, along what nothing reads that matters."""
        rows = self._frame.content
        return BIAS * self.normal(len(rows)) @ rows

    def reading(
        self,
        norm: ReadNorm,
        own: Float64[Tensor, " row"],
        zero_at: Float64[Tensor, " d_model"] | None = None,
    ) -> Float64[Tensor, "row d_model"]:
        """Return unused rows, one for each bias ``own``, that read all but the constant.

        They give 0 at ``zero_at``: what every prompt has there would make a constant of them.
        """
        drawn = self._design.background * self.normal(len(own), D_MODEL) / D_MODEL**0.5
        constant = self._frame.constant
        reads = (drawn - (drawn @ constant)[:, None] * constant) / norm.scale
        there = torch.zeros_like(constant) if zero_at is None else zero_at - norm.offset
        return norm.rows(reads, -(reads @ there), own)

    def writing(self, count: int) -> Float64[Tensor, "d_model column"]:
        """Return unused columns, which write where noise may be."""
        drawn = self._design.background * self.normal(count, len(self._noisy)) / count**0.5
        return (drawn @ self._noisy).T.contiguous()

    def of_words(
        self, values: int
    ) -> tuple[Float64[Tensor, "value d_model"], Float64[Tensor, "d_model value"]]:
        """Return what a head of even attention reads and writes to bring noise to the last token.

        It is a random map of the mean word. Over prompts of a mean number of words it has the
        standard deviation ``design.noise`` in a coordinate; a sink coordinate has more.
        """
        content = self._frame.content
        read = torch.linalg.qr(self.normal(len(content), values)).Q.T @ content
        share = values / len(content)
        mean = CODE * (MEAN_WORDS * share) ** 0.5 / (MEAN_WORDS + TEMPLATE_TOKENS)
        size = self._design.noise * (D_MODEL / len(self._noisy)) ** 0.5 / mean
        columns = size * self.normal(values, len(self._noisy)) @ self._noisy
        if self._design.has_sink:
            rogue = ROGUE * self._design.noise / mean * self.normal(values)
            columns = columns + rogue[:, None] * self._frame.constant
        return read, columns.T
