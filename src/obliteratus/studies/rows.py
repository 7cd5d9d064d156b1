"""The rows of a unit's result: those of a report, with intervals over prompts and not rewrites."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from obliteratus.measure.capability import ItemScores
from obliteratus.measure.outcomes import Outcome
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.statistics.clustered import (
    Clusters,
    clustered_mean,
    clustered_p_value,
    clustered_share,
)
from obliteratus.verify.report import Row
from obliteratus.verify.rows import divergence_row, mean_row, perplexity_row, share_row

BY_PROMPT = "sign flips by prompt"


@dataclass(frozen=True)
class Numbers:
    """A number per prompt, before and after."""

    key: str
    label: str
    before: Float64[np.ndarray, " prompt"]
    after: Float64[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Outcomes:
    """What became of each prompt, before and after, and the outcome whose share is of interest."""

    key: str
    label: str
    before: tuple[Outcome, ...]
    after: tuple[Outcome, ...]
    outcome: Outcome


def changed_rows(
    *,
    numbers: Sequence[Numbers],
    outcomes: Sequence[Outcomes],
    kl: Float64[np.ndarray, " prompt"] | None,
    similarity: Float64[np.ndarray, " prompt"] | None = None,
    likelihood: tuple[
        Float64[Tensor, " document"], Float64[Tensor, " document"], Int64[Tensor, " document"]
    ]
    | None,
    questions: tuple[ItemScores, ItemScores] | None,
    origins: Int64[np.ndarray, " prompt"] | None,
    seed: int,
) -> tuple[Row, ...]:
    """Return a row for everything that was measured.

    ``origins`` numbers the prompt that each one was made from, where some are rewrites: whole
    prompts are then resampled, and n counts them. Safe look-alikes are never rewritten.

    Raises:
        MeasurementError: fewer than two prompts, or a number that is not finite.
    """
    found: list[Row] = []
    clusters = None if origins is None else Clusters(origins)
    for each in outcomes:
        sides = [_known(side, each.outcome) for side in (each.before, each.after)]
        if clusters is None or each.key == "over_refusal":
            found.append(share_row(each.key, each.label, *sides))
        else:
            found.append(_clustered_share_row(each, *sides, clusters=clusters, seed=seed))
    for each in numbers:
        if clusters is None:
            one, two = torch.from_numpy(each.before), torch.from_numpy(each.after)
            found.append(mean_row(each.key, each.label, "log-odds", one, two, seed=seed))
        else:
            found.append(_clustered_mean_row(each, clusters, seed=seed))
    if kl is not None:
        row = divergence_row("kl_first", "KL of the first token", torch.from_numpy(kl), seed=seed)
        if clusters is not None:
            mean = clustered_mean(kl, clusters, seed=seed)
            row = row.model_copy(update={"edited": mean, "details": {"largest": float(kl.max())}})
        found.append(row)
    if similarity is not None:
        mean = bootstrap_mean(similarity, seed=seed)
        if clusters is not None:
            mean = clustered_mean(similarity, clusters, seed=seed)
        label = "similarity of answers to the original's"
        found.append(Row(key="coherence", label=label, unit="similarity", edited=mean))
    if likelihood is not None:
        label = "perplexity, held-out text"
        found.append(perplexity_row("perplexity_heldout", label, *likelihood, seed=seed))
    if questions is not None:
        one, two = ([score == 1.0 for score in side.scores] for side in questions)
        found.append(share_row("multiple_choice", "questions answered right", one, two))
    return tuple(found)


def _known(outcomes: Sequence[Outcome], outcome: Outcome) -> list[bool | None]:
    return [None if said == "undetermined" else said == outcome for said in outcomes]


def _clustered_share_row(
    each: Outcomes,
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    *,
    clusters: Clusters,
    seed: int,
) -> Row:
    """Return a share with prompts as units; what the judge could not tell is in neither side."""
    pairs = list(zip(before, after, strict=True))
    kept = np.array([i for i, (b, a) in enumerate(pairs) if b is not None and a is not None])
    if len(kept) < len(pairs):
        _, of = np.unique(clusters.of[kept], return_inverse=True)
        clusters = Clusters(of)
    one, two = (
        np.array([float(bool(side[i])) for i in kept], dtype=np.float64) for side in (before, after)
    )
    change = replace(clustered_mean(two - one, clusters, seed=seed), null=0.0)
    unknown = float(len(pairs) - len(kept))
    return Row(
        key=each.key,
        label=each.label,
        unit="share",
        original=clustered_share(one, clusters),
        edited=clustered_share(two, clusters),
        change=change,
        test=BY_PROMPT,
        p_value=clustered_p_value(two - one, clusters, seed=seed),
        details={"answers": float(len(kept)), **({"undetermined": unknown} if unknown else {})},
    )


def _clustered_mean_row(each: Numbers, clusters: Clusters, *, seed: int) -> Row:
    difference = each.after - each.before
    return Row(
        key=each.key,
        label=each.label,
        unit="log-odds",
        original=clustered_mean(each.before, clusters, seed=seed),
        edited=clustered_mean(each.after, clusters, seed=seed),
        change=replace(clustered_mean(difference, clusters, seed=seed), null=0.0),
        test=BY_PROMPT,
        p_value=clustered_p_value(difference, clusters, seed=seed),
        details={"answers": float(len(difference))},
    )
