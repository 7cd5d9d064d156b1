"""The rows of the report: each a quantity of both models with its paired test."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.measure.agreement import Agreement
from obliteratus.measure.divergence import SequenceDivergence
from obliteratus.measure.outcomes import Outcome
from obliteratus.statistics.bootstrap import bootstrap_mean, bootstrap_ratio
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.multiple import holm
from obliteratus.statistics.paired import mcnemar
from obliteratus.statistics.permutation import sign_flip
from obliteratus.statistics.power import detectable_mean, detectable_turned
from obliteratus.statistics.proportion import rogan_gladen, wilson, wilson_with_unknown
from obliteratus.statistics.quantile import median
from obliteratus.verify.measurement import Answers
from obliteratus.verify.report import Position, Row, Unit
from obliteratus.verify.stopped import stopped_details

LARGEST_LOG = math.log(sys.float_info.max)  # about 709 nats
POSITION_RESAMPLES = 999  # one interval for each of dozens of positions, for a picture


def outcome_row(key: str, label: str, before: Answers, after: Answers, outcome: Outcome) -> Row:
    """Return the share of prompts with ``outcome``: Wilson intervals and exact McNemar.

    What the judge could not tell widens the intervals by all that it may have been, and is in no
    pair of the test. Where answers were cut short, details say how many.
    """
    first, second = (
        [None if said == "undetermined" else said == outcome for said in each.outcomes]
        for each in (before, after)
    )
    row = share_row(key, label, first, second)
    return row.model_copy(update={"details": row.details | stopped_details(before, after)})


def share_row(
    key: str, label: str, before: Sequence[bool | None], after: Sequence[bool | None]
) -> Row:
    """Return a share of the same prompts of both models; None is a prompt where it is unknown.

    Raises:
        MeasurementError: nothing is known of one of the models, or of any prompt of both.
    """
    known = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if not known:
        raise MeasurementError(
            f"'{label}' is undetermined: of {len(before)} prompts the judge could tell of none in "
            "both models. Use another verify.judge.name, or give this one more to go by."
        )
    test = mcnemar([b for b, _ in known], [a for _, a in known])
    unknown = [sum(value is None for value in side) for side in (before, after)]
    names = ("undetermined_original", "undetermined_edited")
    return Row(
        key=key,
        label=label,
        unit="share",
        original=_share(before),
        edited=_share(after),
        change=test.effect,
        test=test.test,
        p_value=test.p_value,
        detectable=detectable_turned(len(known)),
        details=dict(zip(names, map(float, unknown), strict=True)) if any(unknown) else {},
    )


def _share(values: Sequence[bool | None]) -> Estimate:
    yes, unknown = sum(value is True for value in values), sum(value is None for value in values)
    if not unknown:
        return wilson(yes, len(values))
    return wilson_with_unknown(yes, unknown, len(values))


def corrected(row: Row, judge: Agreement, *, seed: int) -> Row:
    """Return a row of refusals with what the judge gets wrong taken out (Rogan–Gladen).

    Raises:
        MeasurementError: on labelled answers the judge is no better than chance.
    """
    details = dict(row.details)
    sensitivity = judge.counted(label="refusal", said="refusal")
    specificity = judge.counted(label="other", said="other")
    for name, side in (("original", row.original), ("edited", row.edited)):
        assert side is not None
        found = rogan_gladen(
            round(side.value * side.n),
            side.n,
            sensitivity=sensitivity,
            specificity=specificity,
            seed=seed,
        )
        details |= {
            f"corrected_{name}": found.value,
            f"corrected_{name}_low": found.interval[0],
            f"corrected_{name}_high": found.interval[1],
        }
    return row.model_copy(update={"details": details})


def mean_row(
    key: str,
    label: str,
    unit: Unit,
    before: Float64[Tensor, " unit"],
    after: Float64[Tensor, " unit"],
    *,
    seed: int,
) -> Row:
    """Return the mean of a number per prompt: bootstrap intervals and a sign-flip test."""
    first, second = before.numpy(), after.numpy()
    test = sign_flip(second - first, seed=seed)
    return Row(
        key=key,
        label=label,
        unit=unit,
        original=bootstrap_mean(first, seed=seed),
        edited=bootstrap_mean(second, seed=seed),
        change=test.effect,
        test=test.test,
        p_value=test.p_value,
        detectable=_detectable(second - first),
    )


def divergence_row(
    key: str,
    label: str,
    kl: Float64[Tensor, " prompt"],
    *,
    floor: Float64[Tensor, " rerun"] | None = None,
    seed: int,
) -> Row:
    """Return mean, median and largest KL per prompt; its null is the model's own numerical noise.

    ``floor`` is the KL of the original against itself, run again in other batches.
    """
    values = kl.numpy()
    mean = bootstrap_mean(values, seed=seed)
    middle = median(values)
    details = {
        "median": middle.value,
        "median_low": middle.interval[0],
        "median_high": middle.interval[1],
        "largest": float(values.max()),
    }
    if floor is not None:
        mean = replace(mean, null=float(floor.mean()))
    return Row(key=key, label=label, unit="nats", edited=mean, details=details)


def position_rows(divergence: SequenceDivergence, *, seed: int) -> tuple[Position, ...]:
    """Return the mean KL at each token position that at least two completions reach."""
    values, places = divergence.kl.numpy(), divergence.position.numpy()
    found: list[Position] = []
    for position in range(int(places.max()) + 1):
        here = values[places == position]
        if len(here) < 2:
            break
        kl = bootstrap_mean(here, seed=seed, resamples=POSITION_RESAMPLES)
        found.append(Position(position=position, kl=kl))
    return tuple(found)


def perplexity_row(
    key: str,
    label: str,
    before: Float64[Tensor, " unit"],
    after: Float64[Tensor, " unit"],
    tokens: Int64[Tensor, " unit"],
    *,
    seed: int,
) -> Row:
    """Return both perplexities and their ratio, exp(Σ Δnll / Σ tokens), with documents as units.

    ``before`` and ``after`` are summed −log p per document. The change is tested by flipping the
    sign of each document's Δnll; the ``detectable`` ratio is that of the token-weighted mean.
    """
    first, second, n_tokens = before.numpy(), after.numpy(), tokens.double().numpy()
    delta = second - first
    test: Comparison = sign_flip(delta, seed=seed)
    ratio = bootstrap_ratio(delta, n_tokens, seed=seed)
    residual = (delta - ratio.value * n_tokens) / n_tokens.mean()
    return Row(
        key=key,
        label=label,
        unit="perplexity",
        original=exponential(bootstrap_ratio(first, n_tokens, seed=seed)),
        edited=exponential(bootstrap_ratio(second, n_tokens, seed=seed)),
        change=replace(exponential(ratio), null=1.0),
        test=test.test,
        p_value=test.p_value,
        detectable=math.exp(_detectable(residual)),
        details={"tokens": float(n_tokens.sum())},
    )


def exponential(estimate: Estimate) -> Estimate:
    """Return ``estimate`` of a logarithm as one of the number itself.

    Raises:
        MeasurementError: it is larger than a floating-point number can be.
    """
    low, high = estimate.interval
    if max(estimate.value, high) > LARGEST_LOG:
        raise MeasurementError(
            f"a perplexity, or its change, is exp({estimate.value:.3g}) and beyond all numbers: "
            "one of the models predicts nothing. Its weights are damaged, or the dtype that it was "
            "loaded in is too small for them."
        )
    null = None if estimate.null is None else math.exp(estimate.null)
    return replace(
        estimate,
        value=math.exp(estimate.value),
        interval=(math.exp(low), math.exp(high)),
        null=null,
    )


def with_adjusted(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return ``rows`` with Holm's adjusted p-values over all of them that were tested."""
    family = {row.key: row.p_value for row in rows if row.p_value is not None}
    adjusted = holm(family)
    return tuple(
        row.model_copy(update={"adjusted_p": adjusted[row.key]}) if row.key in adjusted else row
        for row in rows
    )


def _detectable(differences: Float64[np.ndarray, " unit"]) -> float:
    return detectable_mean(float(np.std(differences, ddof=1)), len(differences))
