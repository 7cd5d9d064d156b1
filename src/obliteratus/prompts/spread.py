"""Fewer prompts of a set, spread over it so that every category keeps its share."""

from obliteratus.errors import MeasurementError
from obliteratus.prompts.contrast import ContrastSet


def spread_indices(total: int, count: int) -> tuple[int, ...]:
    """Return ``count`` of ``total`` indices at equal distances (all of them if there are fewer).

    Prompts are ordered by category, so every category keeps its share.
    """
    if count >= total:
        return tuple(range(total))
    return tuple(int(index * total / count) for index in range(count))


def limited(prompts: ContrastSet, count: int) -> ContrastSet:
    """Return ``count`` prompts of each class (0: all), spread over the set, pairs kept together.

    Raises:
        MeasurementError: a class has no prompts.
    """
    if not prompts.harmful or not prompts.harmless:
        raise MeasurementError(
            f"the test set '{prompts.name}' has {len(prompts.harmful)} harmful and "
            f"{len(prompts.harmless)} harmless prompts; both are needed. Give more prompts."
        )
    if not count:
        return prompts
    sides = (prompts.harmful, prompts.harmless)
    harmful, harmless = (
        tuple(side[index] for index in spread_indices(len(side), count)) for side in sides
    )
    return ContrastSet(prompts.name, harmful, harmless, prompts.is_paired)
