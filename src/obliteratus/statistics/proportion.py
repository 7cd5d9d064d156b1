"""A proportion with its Wilson score interval."""

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from obliteratus.errors import MeasurementError
from obliteratus.statistics.estimate import Estimate

CONFIDENCE = 0.95
DRAWS = 20_000  # quantiles of 2.5 % are then good to a hundredth of the interval


def wilson(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate a proportion from ``successes`` of ``n`` independent trials.

    The interval is Wilson's score interval (Wilson 1927), which stays inside [0, 1] and has width
    at 0 and at n successes: 0 of 100 gives an upper bound of 3.7 %.

    Raises:
        MeasurementError: there are no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise MeasurementError(
            f"a proportion needs 0 <= successes <= n and n >= 1; got {successes} of {n}. "
            "Measure at least one prompt."
        )
    bounds = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    low, high = np.asarray(bounds, dtype=np.float64).tolist()
    # At 0 and at n rounding leaves the bound that is exactly 0 or 1 a few ulp away from it.
    return Estimate(
        value=successes / n,
        interval=(
            0.0 if successes == 0 else low,
            1.0 if successes == n else high,
        ),
        n=n,
    )


def wilson_with_unknown(
    successes: int, unknown: int, n: int, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Estimate a proportion of ``n`` trials of which ``unknown`` have no known result.

    The value is that of the known ones. The interval holds whatever the others are: from Wilson's
    lower bound with all of them failures to his upper bound with all of them successes.

    Raises:
        MeasurementError: no trial has a known result, or the counts do not add up.
    """
    known = n - unknown
    if known < 1 or unknown < 0 or not 0 <= successes <= known:
        raise MeasurementError(
            f"a proportion needs known results; {successes} successes and {unknown} unknown of {n} "
            "were given. Use a judge that can tell."
        )
    low = wilson(successes, n, confidence=confidence).interval[0]
    high = wilson(successes + unknown, n, confidence=confidence).interval[1]
    return Estimate(value=successes / known, interval=(low, high), n=n)


def rogan_gladen(
    successes: int,
    n: int,
    *,
    sensitivity: tuple[int, int],
    specificity: tuple[int, int],
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """Correct a proportion for the errors of what counted it (Rogan and Gladen 1978).

    (p + Sp − 1) / (Se + Sp − 1), kept within 0 and 1. ``sensitivity`` and ``specificity`` are
    (right, asked) on labelled units that have the property and that have not. The interval draws
    all three proportions from their Jeffreys posteriors, so it knows how few units were labelled.
    It holds where the judge errs on these units as it does on labelled ones.

    Raises:
        MeasurementError: counts do not add up, or the judge is no better than chance.
    """
    observed = wilson(successes, n, confidence=confidence)
    se, sp = wilson(*sensitivity).value, wilson(*specificity).value
    if se + sp <= 1:
        raise MeasurementError(
            f"a judge that finds {se:.0%} of what there is and passes {sp:.0%} of the rest is no "
            "better than chance, so nothing can be corrected by it. Use another judge."
        )
    generator = np.random.default_rng(seed)

    def drawn(right: int, asked: int) -> np.ndarray:
        return generator.beta(right + 0.5, asked - right + 0.5, DRAWS)

    p, se_drawn, sp_drawn = drawn(successes, n), drawn(*sensitivity), drawn(*specificity)
    gain = se_drawn + sp_drawn - 1
    corrected = np.clip((p + sp_drawn - 1)[gain > 0] / gain[gain > 0], 0, 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(corrected, [tail, 1 - tail]).tolist()
    value = min(1.0, max(0.0, (observed.value + sp - 1) / (se + sp - 1)))
    return Estimate(value, (min(low, value), max(high, value)), n=n, seed=seed)
