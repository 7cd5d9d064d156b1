"""Correct a family of tests for being many."""

from collections.abc import Mapping

import numpy as np
from statsmodels.stats.multitest import multipletests

from obliteratus.errors import MeasurementError

LEVEL = 0.05


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values (1979), which control the family-wise error rate.

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
    adjusted = multipletests(list(p_values.values()), alpha=LEVEL, method="holm")[1]
    return dict(zip(p_values, np.asarray(adjusted, dtype=np.float64).tolist(), strict=True))
