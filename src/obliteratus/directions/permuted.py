"""The same extraction with permuted labels: what a direction is worth when there is no class."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.filters import removed_at, removed_everywhere
from obliteratus.directions.knobs import extractor_of
from obliteratus.directions.samples import Samples, samples_at
from obliteratus.probe.activations import Activations
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.shapes import Layer


def permuted_directions(activations: Activations, directions: Directions, seed: int) -> Directions:
    """Return ``directions`` extracted again, at the same places, from shuffled labels.

    In a paired set harmful and harmless are exchanged in a random half of the pairs; otherwise the
    prompts are dealt anew into classes of the same sizes. Layers and ranks are those of
    ``directions``; nothing is selected again.
    """
    extract = extractor_of(directions.extractor, directions.knobs)
    position = max(activations.positions) if directions.position is None else directions.position
    if directions.source_layer is not None:
        samples = permuted(samples_at(activations, directions.source_layer, position), seed)
        rows = extract(samples, max_rank=directions.rank)
        removed = removed_everywhere(directions.extractor, samples, rows, tuple(directions.basis))
    else:
        everywhere: dict[Layer, Samples] = {
            layer: permuted(samples_at(activations, layer, position), seed)
            for layer in directions.basis
        }
        found: dict[Layer, Tensor] = {
            layer: extract(everywhere[layer], max_rank=len(old))
            for layer, old in directions.basis.items()
        }
        removed = removed_at(directions.extractor, everywhere, found)
    return replace(
        directions,
        basis=removed.basis,
        filters=removed.filters,
        reliability={},
        provenance={"permuted": seed},
    )


def permuted(samples: Samples, seed: int) -> Samples:
    """Return ``samples`` with shuffled labels."""
    n = len(samples.harmful)
    both = torch.cat([samples.harmful, samples.harmless])
    both = both[_shuffled(n, len(samples.harmless), seed, is_paired=samples.is_paired)]
    first, second = both[:n], both[n:]
    delta = first.to(torch.float64).mean(0) - second.to(torch.float64).mean(0)
    return replace(samples, delta=delta, harmful=first, harmless=second)


def permuted_prompts(prompts: ContrastSet, seed: int) -> ContrastSet:
    """Return ``prompts`` with the labels that :func:`permuted` gives their activations."""
    n, both = len(prompts.harmful), (*prompts.harmful, *prompts.harmless)
    order = _shuffled(n, len(prompts.harmless), seed, is_paired=prompts.is_paired).tolist()
    dealt = tuple(both[row] for row in order)
    return replace(prompts, harmful=dealt[:n], harmless=dealt[n:])


def _shuffled(harmful: int, harmless: int, seed: int, *, is_paired: bool) -> Int[Tensor, " prompt"]:
    """Return the rows of both classes, one after the other, in their new order."""
    generator = torch.Generator().manual_seed(seed)
    if not is_paired:
        return torch.randperm(harmful + harmless, generator=generator)
    order = torch.arange(2 * harmful)
    swap = torch.randperm(harmful, generator=generator)[: harmful // 2]
    order[swap], order[harmful + swap] = harmful + swap, swap
    return order
