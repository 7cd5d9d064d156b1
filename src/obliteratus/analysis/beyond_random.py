"""Whether an effect on prompts is larger than what a null has."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.resampling import SIGNIFICANT, prediction_bound
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.permutation import sign_flip

NEGLIGIBLE = 0.25
"""Log-odds: an effect that surely stays below is as good as none."""


def above(values: Float64[np.ndarray, " prompt"], bound: float, seed: int) -> Estimate:
    """Return the mean of ``values`` (log-odds) with ``bound`` as its null.

    It is supported where a sign-flip test over prompts puts it above the bound, and not supported
    where its interval stays below that, or is negligible.
    """
    test = sign_flip(values - bound, seed=seed)
    low, high = (end + bound for end in test.effect.interval)
    value = float(values.mean())
    verdict: Verdict = "undetermined"
    if value > max(bound, NEGLIGIBLE) and test.p_value < SIGNIFICANT:
        verdict = "supported"
    elif high < max(bound, NEGLIGIBLE):
        verdict = "not_supported"
    return replace(test.effect, value=value, interval=(low, high), null=bound, verdict=verdict)


def beyond(values: Float64[np.ndarray, "vector prompt"], seed: int) -> Estimate:
    """Return the mean of row 0, held against what a further row like the others stays below.

    Row 0 is the direction in question, the others are random ones.
    """
    return above(values[0], prediction_bound(values[1:].mean(axis=1)), seed)
