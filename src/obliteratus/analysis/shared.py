"""Do the changes of many matrices point to one direction of the stream?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

DRAWS = 99
"""Draws of the null: a shared vector beyond all of them has p = 0.01."""

Rows = tuple[Float64[Tensor, "_ d_model"], Float64[Tensor, "_"]]
"""Unit directions of one matrix's change, and their shares of its energy."""


@dataclass(frozen=True)
class Shared:
    """The mean share of the changes' energy along the one direction that has most of it.

    ``interval`` is a percentile bootstrap over matrices (95 %), ``null`` the mean of the draws in
    which every matrix has its coordinates' signs flipped at random: outlying coordinates stay, what
    is shared beyond them goes.
    """

    value: float
    interval: tuple[float, float]
    null: float
    p_value: float

    @property
    def smallest_p(self) -> float:
        """The p of a value beyond every draw."""
        return 1 / (1 + DRAWS)


def shared_vector(changes: Sequence[Rows], *, seed: int) -> Shared | None:
    """Return the largest eigenvalue of the mean over matrices of Σ weight · l lᵀ, with its null.

    1 where all change along one direction and nothing else. None where there are no matrices.
    """
    if not changes:
        return None
    rng = np.random.default_rng(seed)
    parts = [rows.numpy() * np.sqrt(weights.numpy())[:, None] for rows, weights in changes]
    value = _largest(parts)
    flipped = [
        _largest([part * rng.choice((-1.0, 1.0), size=part.shape[1]) for part in parts])
        for _ in range(DRAWS)
    ]
    drawn = [
        _largest([parts[index] for index in rng.integers(len(parts), size=len(parts))])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    above = sum(each >= value for each in flipped)
    return Shared(
        value,
        (min(low, value), max(high, value)),
        float(np.mean(flipped)),
        (1 + above) / (1 + DRAWS),
    )


def leading_rows(
    directions: Sequence[Float64[Tensor, "_ d_model"]], rank: int
) -> Float64[Tensor, "leading d_model"]:
    """Return the ``rank`` leading right vectors of all ``directions``: what they have in common."""
    return torch.linalg.svd(torch.cat(list(directions)), full_matrices=False).Vh[:rank].clone()


def _largest(parts: Sequence[np.ndarray]) -> float:
    stack = np.concatenate(parts)
    product = stack @ stack.T if len(stack) < stack.shape[1] else stack.T @ stack
    return float(np.linalg.eigvalsh(product)[-1]) / len(parts)
