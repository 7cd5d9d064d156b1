"""The one optimiser of all that is trained here: methods differ in their loss alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Loss = Callable[[int], Tensor]
"""Step -> the loss to go down."""


@dataclass(frozen=True)
class Recipe:
    """Steps, conversations per step, and the peak of a learning rate that rises and falls."""

    steps: int
    rows: int
    learning_rate: float
    warmup: float = 0.1


ALIGNMENT = Recipe(steps=150, rows=32, learning_rate=2e-3)
"""The same for every method and for the twin that refuses nothing."""


def optimise(module: PreTrainedModel, loss: Loss, recipe: Recipe) -> None:
    """Train all of ``module``, in place: AdamW without decay, gradients clipped to length 1."""
    module.train()
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)
    )
    for step in range(recipe.steps):
        rise = min(1.0, (step + 1) / (recipe.warmup * recipe.steps))
        fall = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rise * fall
        optimizer.zero_grad()
        loss(step).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    module.eval()
