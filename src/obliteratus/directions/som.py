"""Several directions from a self-organising map of the harmful prompts (arXiv:2511.08379)."""

from typing import Annotated

import torch
from jaxtyping import Float64, Int
from pydantic import Field
from torch import Tensor

from obliteratus.directions.samples import EXTRACTORS, Samples, signed_by_delta, unit_delta
from obliteratus.operator.bases import orthonormalise

ROUNDS = 50
"""Batch rounds; the radius has shrunk to ``LAST_RADIUS`` after half of them."""
LAST_RADIUS = 0.5
"""In steps of the grid: a neuron then takes a seventh of the weight of its neighbours' prompts."""
SMALLEST_PART = 1e-3
"""A neuron's direction of which less lies outside the rows before it repeats them."""

SMALLEST = torch.finfo(torch.float64).tiny


@EXTRACTORS.register("som")
def som(
    samples: Samples, *, max_rank: int = 1, side: Annotated[int, Field(ge=1, le=16)] = 4
) -> Float64[Tensor, "rank d_model"]:
    """Return directions w_k − μ_harmless of the neurons w_k of a ``side`` x ``side`` map.

    The map is trained on the harmful prompts, so that its neurons follow the manifold on which they
    lie; one neuron is their mean, and its direction δ. Row 0 is the direction with the largest
    cosine with δ. Each further row is the one of the most energy outside the rows before it: the
    share of the prompts that are nearest to its neuron, times the squared length of what is left.
    Rows are orthonormal and signed by δ. A larger ``side`` follows finer structure with fewer
    prompts to each neuron, so with more noise in row 0 as well.

    The map is trained in batches from a grid on the two principal axes (Kohonen 2013), so it needs
    no random numbers and does not depend on the order of the prompts. The publication searches the
    subset of directions to remove by Bayesian optimisation; here the rank search keeps leading rows
    while they lower refusal.

    Raises:
        DirectionError: the class means do not differ, or are not finite.
    """
    delta = unit_delta(samples)[0]
    harmful = samples.harmful.to("cpu", torch.float64)
    neurons, shares = _trained(harmful, side)
    away = neurons - samples.harmless.to("cpu", torch.float64).mean(0)
    lengths = away.norm(dim=1)
    leans = (away @ delta).abs() / lengths.clamp_min(SMALLEST)
    chosen = [int(leans.argmax())]
    rest = away
    while len(chosen) < min(max_rank, len(away)):
        basis = orthonormalise(away[chosen])
        for _ in range(2):  # once loses digits to cancellation
            rest = rest - (rest @ basis.T) @ basis
        is_new = rest.norm(dim=1) > SMALLEST_PART * lengths
        energy = torch.where(is_new, shares * rest.square().sum(1), 0.0)
        if not float(energy.max()) > 0:
            break
        chosen.append(int(energy.argmax()))
    return signed_by_delta(orthonormalise(away[chosen]), samples.delta)


def _trained(
    rows: Float64[Tensor, "prompt d_model"], side: int
) -> tuple[Float64[Tensor, "neuron d_model"], Float64[Tensor, " neuron"]]:
    """Return the neurons and the share of the prompts that is nearest to each."""
    steps = torch.arange(side, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps)
    between = torch.cdist(grid, grid).square()
    neurons = _laid_out(rows, grid)
    first = max(side / 2, LAST_RADIUS)
    for turn in range(ROUNDS):
        progress = min(1.0, 2 * turn / ROUNDS)
        radius = first * (LAST_RADIUS / first) ** progress
        weights = torch.exp(-between / (2 * radius**2))
        counts = torch.zeros(len(grid), dtype=torch.float64)
        sums = torch.zeros_like(neurons)
        nearest = _nearest(rows, neurons)
        counts.index_add_(0, nearest, torch.ones(len(rows), dtype=torch.float64))
        sums.index_add_(0, nearest, rows)
        total = (weights @ counts)[:, None]  # 0 far from all prompts, where a neuron stays
        neurons = torch.where(total > 0, (weights @ sums) / total.clamp_min(SMALLEST), neurons)
    counts = _nearest(rows, neurons).bincount(minlength=len(grid))
    return neurons, counts.to(torch.float64) / len(rows)


def _laid_out(
    rows: Float64[Tensor, "prompt d_model"], grid: Float64[Tensor, "neuron 2"]
) -> Float64[Tensor, "neuron d_model"]:
    """Return ``grid`` on the plane of the two principal axes, two standard deviations each way."""
    mean = rows.mean(0)
    _, sizes, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    plane = (sizes[:2, None] / len(rows) ** 0.5) * axes[:2]
    span = max(float(grid.max()), 1.0) / 2
    return mean + 2 * ((grid - grid.mean(0)) / span)[:, : len(plane)] @ plane


def _nearest(
    rows: Float64[Tensor, "prompt d_model"], neurons: Float64[Tensor, "neuron d_model"]
) -> Int[Tensor, " prompt"]:
    return torch.cdist(rows, neurons, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
