"""What every layer separates and controls: for the pictures, the tables and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float64

from obliteratus.directions.directions import Directions
from obliteratus.directions.layers import LayerRank
from obliteratus.errors import MeasurementError
from obliteratus.statistics.bootstrap import bootstrap_difference, bootstrap_mean
from obliteratus.verify.formatting import shown
from obliteratus.verify.measurement import Projections
from obliteratus.verify.records.layers import CandidateRow, LayerRow, RankRow, Separation

RESAMPLES = 999  # dozens of layers, for a picture
SMALLEST_DEVIATION = 1e-9  # relative to the projections' size: below it the classes are constant


def layer_rows(original: Projections, edited: Projections, *, seed: int) -> tuple[LayerRow, ...]:
    """Return the separation at every layer where the original's projections vary at all.

    d' = (mean harmful − mean harmless) / s, with s² the mean of the original's two within-class
    variances, for both models: so what an edit leaves is measured in the original's units. At the
    embedding the last template token is the same for every prompt, and the layer is left out.

    Raises:
        MeasurementError: the two were measured along different layers or prompts.
    """
    if original.layers != edited.layers or original.harmful.shape != edited.harmful.shape:
        raise MeasurementError(
            "the two models were projected at different layers or on different prompts. Measure "
            "both with the same directions."
        )
    rows: list[LayerRow] = []
    for index, layer in enumerate(original.layers):
        harmful, harmless = original.harmful[index].numpy(), original.harmless[index].numpy()
        variance = (float(np.var(harmful, ddof=1)) + float(np.var(harmless, ddof=1))) / 2
        size = float(np.abs(np.concatenate([harmful, harmless])).max())
        if variance**0.5 <= SMALLEST_DEVIATION * size:
            continue
        zero, unit = float(harmless.mean()), variance**0.5
        after = (edited.harmful[index].numpy(), edited.harmless[index].numpy())
        rows.append(
            LayerRow(
                layer=layer,
                original=_separation((harmful - zero) / unit, (harmless - zero) / unit, seed),
                edited=_separation((after[0] - zero) / unit, (after[1] - zero) / unit, seed),
            )
        )
    return tuple(rows)


def candidate_rows(directions: Directions) -> tuple[CandidateRow, ...]:
    """Return the directions that were tried, with their causal scores, if a selection was made.

    Those without finite scores are left out: a selection without refusal tokens has none.
    """
    table: list[Mapping[str, Any]] = list(directions.provenance.get("selection", ()))
    place = (directions.source_layer, directions.position)
    return tuple(
        CandidateRow(
            layer=row["layer"],
            position=row["position"],
            bypass=row["bypass"],
            induce=row["induce"],
            kl=row["kl"],
            is_chosen=(row["layer"], row["position"]) == place,
        )
        for row in table
        if row["bypass"] is not None
        and np.isfinite([row["bypass"], row["induce"], row["kl"]]).all()
    )


def rank_rows(directions: Directions) -> tuple[RankRow, ...]:
    """Return how DISTILL ranked the layers, if the directions tell."""
    found: list[Mapping[str, Any]] = list(directions.provenance.get("layers", ()))
    return tuple(RankRow(**asdict(LayerRank.from_json(each))) for each in found)


def rank_line(ranking: Sequence[RankRow]) -> str:
    """Return the ranking in one sentence: which layers are strong, and the numbers of one of them.

    The one told lowers refusal the most when its direction is removed.
    """
    strong = [row for row in ranking if row.standing == "strong"]
    if not strong:
        return (
            "Strong layers: undetermined. At none do separation, bypass and induce all exceed "
            "their nulls."
        )
    best = max(strong, key=lambda row: row.bypass.value if row.bypass is not None else 0.0)
    return (
        f"Strong layers: {layer_ranges([row.layer for row in strong])} of {len(ranking)}. "
        f"Layer {best.layer}: separation {shown(best.separation, 'log-odds')} s.d., bypass "
        f"{shown(best.bypass, 'log-odds')}, induce {shown(best.induce, 'log-odds')}."
    )


def layer_ranges(layers: Sequence[int]) -> str:
    """Return ``3, 8-12`` for 3, 8, 9, 10, 11, 12; layers ascend."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _separation(
    harmful: Float64[np.ndarray, " harmful"], harmless: Float64[np.ndarray, " harmless"], seed: int
) -> Separation:
    return Separation(
        harmful=bootstrap_mean(harmful, seed=seed, resamples=RESAMPLES, method="percentile"),
        harmless=bootstrap_mean(harmless, seed=seed, resamples=RESAMPLES, method="percentile"),
        d_prime=bootstrap_difference(harmless, harmful, seed=seed, resamples=RESAMPLES),
    )
