"""Inner products of the mean differences of all layers, without the noise that they share.

The stream is carried on from layer to layer with the noise of every prompt in it; here no prompt
meets itself, as in :mod:`obliteratus.analysis.products`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.probe.activations import Activations

UNITS = 64
"""Prompts at once whose layers are multiplied with each other."""


class LayerProducts:
    """The differences of all layers at one position: of pairs, or of both classes without pairs."""

    def __init__(self, activations: Activations, position: int) -> None:
        """Take every prompt that was kept."""
        column = activations.positions.index(position)
        sides = [
            [side.kept[layer][:, column].double() for layer in activations.layers]
            for side in (activations.harmful, activations.harmless)
        ]
        if activations.is_paired:
            pairs = [first - second for first, second in zip(*sides, strict=True)]
            self._rows = [pairs]
        else:
            means = [torch.cat(both).mean(0) for both in zip(*sides, strict=True)]
            self._rows = [
                [rows - mean for rows, mean in zip(side, means, strict=True)] for side in sides
            ]
        self._own = [_own_products(rows) for rows in self._rows]

    def once(self) -> list[Float64[np.ndarray, "resample prompt"]]:
        """Return weights with which every prompt counts once."""
        return [np.ones((1, len(rows[0]))) for rows in self._rows]

    def resampled(
        self, rng: np.random.Generator, resamples: int
    ) -> list[Float64[np.ndarray, "resample prompt"]]:
        """Return how often a bootstrap draws each prompt of each class (each pair)."""
        sizes = [len(rows[0]) for rows in self._rows]
        return [
            rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)
            for size in sizes
        ]

    def products(
        self, weights: Sequence[Float64[np.ndarray, "resample prompt"]]
    ) -> Float64[np.ndarray, "resample layer layer"]:
        """Return N of all layers, with each prompt weighted, and never against itself."""
        found, means = 0.0, list[Float64[np.ndarray, "resample layer d_model"]]()
        for rows, own, weight in zip(self._rows, self._own, weights, strict=True):
            given = torch.from_numpy(weight)
            sums = torch.stack([given @ layer for layer in rows], dim=1).numpy()
            total, squares = weight.sum(axis=1), (weight**2).sum(axis=1)
            every = sums @ np.swapaxes(sums, 1, 2)
            itself = np.tensordot(weight**2, own, axes=1)
            found = found + (every - itself) / (total**2 - squares)[:, None, None]
            means.append(sums / total[:, None, None])
        if len(means) > 1:
            across = means[0] @ np.swapaxes(means[1], 1, 2)
            found = found - across - np.swapaxes(across, 1, 2)
        return np.asarray(found)

    def plain(self) -> Float64[np.ndarray, "layer layer"]:
        """Return δ_l · δ_m as they are, noise and all."""
        means = [torch.stack([layer.mean(0) for layer in rows]) for rows in self._rows]
        delta = means[0] if len(means) == 1 else means[0] - means[1]
        return (delta @ delta.T).numpy()


def _own_products(rows: Sequence[Tensor]) -> Float64[np.ndarray, "prompt layer layer"]:
    """Return the products of every prompt's own layers."""
    found = np.empty((len(rows[0]), len(rows), len(rows)))
    for start in range(0, len(rows[0]), UNITS):
        block = torch.stack([layer[start : start + UNITS] for layer in rows], dim=1)
        found[start : start + UNITS] = (block @ block.transpose(1, 2)).numpy()
    return found
