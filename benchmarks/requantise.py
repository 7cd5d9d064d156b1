"""What requantising an edited matrix puts back along the removed direction.

    python benchmarks/requantise.py smollm2-refuser

For every matrix that writes to the stream: r is removed in float64, the result is stored in
bfloat16, int8 (bitsandbytes, one scale per row) or 4 bits (NF4, 64 numbers to a scale) and read
back. Printed is the median of d‖rᵀW'‖² / (k‖W‖²): the energy left along r, 1 for a direction that
was never removed.
"""

import argparse
import statistics

import torch

from obliteratus.models.summon import summon
from obliteratus.operator.grro import remove_from_output
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.requantised import STORAGES, refilled


def main() -> None:
    """Print the median and the range of the refilled energy for each storage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    model = summon(parser.parse_args().model)
    rows = random_directions(model).basis[0]
    found: dict[str, list[float]] = {name: [] for name in STORAGES}
    for site in model.anatomy.writers:
        if site.component == "embedding" or site.layout != "out_in" or site.expert == "fused":
            continue
        weight = model.module.get_parameter(site.name).detach().to(torch.float64)
        edited = remove_from_output(weight, rows)
        for name in STORAGES:
            found[name].append(refilled(edited, rows, weight, name))
    for name, energies in found.items():
        print(
            f"{name:<9} {statistics.median(energies):.1e}  ({min(energies):.1e} to "
            f"{max(energies):.1e}, {len(energies)} matrices)"
        )


if __name__ == "__main__":
    main()
