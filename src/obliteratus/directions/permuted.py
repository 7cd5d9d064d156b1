"""The same extraction with permuted labels: what a direction is worth when there is no class."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.extraction import extraction
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
    extract = extraction(directions.extractor, directions.knobs)
    position = max(activations.positions) if directions.position is None else directions.position
    if directions.source_layer is not None:
        samples = permuted(samples_at(activations, directions.source_layer, position), seed)
        rows = extract(samples, max_rank=directions.rank)
        removed = extract.removed_everywhere(samples, rows, tuple(directions.basis))
    else:
        everywhere: dict[Layer, Samples] = {
            layer: permuted(samples_at(activations, layer, position), seed)
            for layer in directions.basis
        }
        found: dict[Layer, Tensor] = {
            layer: extract(everywhere[layer], max_rank=len(old))
            for layer, old in directions.basis.items()
        }
        removed = extract.removed_at(everywhere, found)
    return replace(
        directions,
        basis=removed.basis,
        filters=removed.filters,
        reliability={},
        provenance={"permuted": seed},
    )


def permuted(samples: Samples, seed: int) -> Samples:
    """Return ``samples`` with shuffled labels, those of exactly half of the pairs where paired."""
    count = len(samples.harmful)
    order = shuffled(count, len(samples.harmless), is_paired=samples.is_paired, seed=seed)
    return dealt_anew(samples, order)


def shuffled(harmful: int, harmless: int, *, is_paired: bool, seed: int) -> Int[Tensor, " prompt"]:
    """Return the numbers of all prompts, harmful ones first, in an order that shuffles the labels.

    The first ``harmful`` of them are to be taken for harmful ones. In a paired set a random half of
    the pairs is turned round.
    """
    generator = torch.Generator().manual_seed(seed)
    if not is_paired:
        return torch.randperm(harmful + harmless, generator=generator)
    order = torch.arange(2 * harmful).reshape(2, harmful)
    turned = torch.randperm(harmful, generator=generator)[: harmful // 2]
    order[:, turned] = order[:, turned].flip(0)
    return order.flatten()


def permuted_prompts(prompts: ContrastSet, seed: int) -> ContrastSet:
    """Return ``prompts`` with the labels that :func:`permuted` gives their activations."""
    n, both = len(prompts.harmful), (*prompts.harmful, *prompts.harmless)
    order = shuffled(n, len(prompts.harmless), is_paired=prompts.is_paired, seed=seed).tolist()
    dealt = tuple(both[row] for row in order)
    return replace(prompts, harmful=dealt[:n], harmless=dealt[n:])


def exchanged(samples: Samples, swap: Bool[Tensor, " pair"]) -> Samples:
    """Return paired ``samples`` with both labels of every pair exchanged where ``swap`` is true."""
    harmful, harmless = samples.harmful, samples.harmless
    first = torch.where(swap[:, None], harmless, harmful)
    second = torch.where(swap[:, None], harmful, harmless)
    return _relabelled(samples, first, second)


def dealt_anew(samples: Samples, order: Int[Tensor, " prompt"]) -> Samples:
    """Return ``samples`` with classes of the same sizes made of all prompts in ``order``."""
    both = torch.cat([samples.harmful, samples.harmless])[order]
    return _relabelled(samples, both[: len(samples.harmful)], both[len(samples.harmful) :])


def _relabelled(samples: Samples, harmful: Tensor, harmless: Tensor) -> Samples:
    delta = harmful.to(torch.float64).mean(0) - harmless.to(torch.float64).mean(0)
    return replace(samples, delta=delta, harmful=harmful, harmless=harmless)
