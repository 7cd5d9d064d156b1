"""Whether an effect on prompts is larger than what random directions have."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from obliteratus.analysis.resampling import SIGNIFICANT, prediction_bound
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.permutation import sign_flip

NEGLIGIBLE = 0.25
"""Log-odds: an effect that surely stays below is as good as none."""


def beyond(values: Float64[np.ndarray, "vector prompt"], seed: int) -> Estimate:
    """Return the mean of row 0, held against what a further row like the others stays below.

    Row 0 is the direction in question, the others are random ones. ``null`` is the bound; the
    effect is supported where a sign-flip test over prompts puts it above that, and not supported
    where its interval stays below.
    """
    bound = prediction_bound(values[1:].mean(axis=1))
    test = sign_flip(values[0] - bound, seed=seed)
    low, high = (end + bound for end in test.effect.interval)
    value = float(values[0].mean())
    verdict: Verdict = "undetermined"
    if value > max(bound, NEGLIGIBLE) and test.p_value < SIGNIFICANT:
        verdict = "supported"
    elif high < max(bound, NEGLIGIBLE):
        verdict = "not_supported"
    return replace(test.effect, value=value, interval=(low, high), null=bound, verdict=verdict)
