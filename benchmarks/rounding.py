"""Measure what rounding to bfloat16 leaves along a removed direction, by width and by method.

    python benchmarks/rounding.py

Prints the table of docs/design/rounding.md.
"""

import math

import torch
from torch import Tensor

from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.rounding import store_rounded

WIDTHS = (512, 2048, 4096, 8192)
COLUMNS = 1000


def main() -> None:
    """Measure and print."""
    for width in WIDTHS:
        generator = torch.Generator().manual_seed(width)
        row = orthonormalise(torch.randn((1, width), generator=generator))
        weight = torch.randn((width, COLUMNS), generator=generator).bfloat16().double()
        exact = weight - row.T @ (row @ weight)
        nearest = exact.bfloat16().double()
        ours = torch.empty_like(exact, dtype=torch.bfloat16)
        store_rounded(exact.clone(), row, ours)
        step = ulp(exact)
        dither = torch.rand(exact.shape, generator=generator, dtype=torch.float64)
        stochastic = torch.floor(exact / step + dither) * step
        shares = (share(row, each) for each in (nearest, stochastic, ours.double()))
        errors = (float((each - exact).norm() / exact.norm()) for each in (nearest, ours.double()))
        cells = [f"{each:.1e}" for each in shares]
        print(f"| {width} | {' | '.join(cells)} | {' → '.join(f'{e:.2e}' for e in errors)} |")


def share(row: Tensor, weight: Tensor) -> float:
    """Return ‖r W‖ as a share of that of a random direction."""
    return float((row @ weight).norm() / weight.norm()) * math.sqrt(row.shape[1])


def ulp(numbers: Tensor) -> Tensor:
    """Return the distance of bfloat16 numbers near ``numbers``."""
    _, exponent = torch.frexp(numbers)
    return torch.ldexp(torch.ones_like(numbers), exponent - 8)


if __name__ == "__main__":
    main()
