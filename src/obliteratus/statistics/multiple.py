"""Correct a family of tests for being many."""

from collections.abc import Mapping

import numpy as np

from obliteratus.errors import MeasurementError


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values (1979), which control the family-wise error rate.

    In increasing order, p̃₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎), with m tests.
    An effect is significant at level α within its family when its adjusted p-value is below α. The
    family is everything the report tests: leave none of it out.

    Raises:
        MeasurementError: the family is empty, or a p-value is not in [0, 1].
    """
    if not p_values:
        raise MeasurementError("a family of tests needs at least one test.")
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise MeasurementError(f"the p-value of '{name}' is {p_value}, outside [0, 1].")
    names = sorted(p_values, key=lambda name: p_values[name])
    scaled = np.array([p_values[name] for name in names]) * np.arange(len(names), 0, -1)
    adjusted = np.maximum.accumulate(np.minimum(scaled, 1.0)).tolist()
    found = dict(zip(names, adjusted, strict=True))
    return {name: found[name] for name in p_values}
