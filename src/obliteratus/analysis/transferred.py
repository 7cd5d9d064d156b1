"""What a direction of another model does in this one, beside its own and random ones as long.

The direction that was brought here is added to harmless prompts at one layer, ‖δ‖ of this model
long, and taken out of harmful prompts at every layer: what a token has along it becomes what
harmless prompts have (2411.09003), because a projection would also take out what all prompts have
in common, and any direction with a part along that would seem to act. So are the model's own
direction, which says what there is to transfer, and random directions that were brought here the
same way: what a map makes of any direction has the variance that the map prefers, and with it an
effect that a random direction of this model would not have. Through a map these are contrasts of
the text that it was learned on, because the map blows up whatever that text hardly varies along;
and all are orthogonal to the direction in question, which is one of the few that text varies along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import NEGLIGIBLE, above
from obliteratus.analysis.intervening import scores
from obliteratus.analysis.resampling import SIGNIFICANT, ends, prediction_bound, weights
from obliteratus.directions.directions import Directions
from obliteratus.events import track
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.chat import Encoded
from obliteratus.operator.removal import everywhere
from obliteratus.operator.steering import steering
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate

WAYS: Mapping[str, str] = {
    "added": "added to harmless prompts, it raises refusal by",
    "removed": "taken out of harmful ones, it lowers refusal by",
}
RANDOM = 12
"""Random directions: of a further one it can be said that it stays below 2.3 standard deviations,
and with six below 2.8, where a direction that acts may not be told from them."""


@dataclass(frozen=True)
class Transferred:
    """Changes of refusal log-odds, signed so that above 0 a direction does what refusal would.

    Row 0 is the direction that was brought here, row 1 the model's own, the others are random.
    """

    added: Float64[np.ndarray, "vector prompt"]
    removed: Float64[np.ndarray, "vector prompt"]


def act(
    bench: Bench,
    tokens: RefusalTokens,
    rows: Sequence[Float64[Tensor, " d_model"]],
    *,
    layer: Layer,
    length: float,
    means: Mapping[Layer, Float64[Tensor, " d_model"]],
) -> Transferred:
    """Add and remove each of ``rows`` (unit vectors), ``length`` long, in the bench's model.

    ``means`` are those of harmless prompts at every layer. ``tokens`` are those of the model's
    refusals, or of the model that it was made from: an edited one may have none of its own.
    """

    def seen(encoded: Encoded) -> Float64[np.ndarray, " prompt"]:
        return scores(bench.model, bench.head, tokens, encoded)

    sides: dict[str, Encoded] = {"added": bench.subset.harmless, "removed": bench.subset.harmful}
    before = {way: seen(side) for way, side in sides.items()}
    found: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for row in track(rows, task="transfer", total=len(rows), unit="directions"):
        push = Directions({layer: row[None]}, {layer: length}, "transferred")
        whole = everywhere(bench.model, row[None])
        removal = Directions(whole, dict.fromkeys(whole, length), "transferred")
        with steering(bench.model, push, kind="addition"):
            found["added"].append(seen(sides["added"]) - before["added"])
        with steering(bench.model, removal, kind="affine", means=means):
            found["removed"].append(before["removed"] - seen(sides["removed"]))
    return Transferred(**{way: np.array(values) for way, values in found.items()})


def transfer_estimates(acted: Transferred, *, seed: int, reliable: bool) -> dict[str, Estimate]:
    """Return for each way the effect of the direction, of the model's own, and their ratio.

    An effect is held against what a further random direction stays below (a prediction bound at 5 %
    over both ways). Where the map that brought the direction here is not ``reliable``, nothing is
    said of it; the ratio has no verdict, and is left out where the model's own does nothing.
    """
    found: dict[str, Estimate] = {}
    for way in WAYS:
        values: Float64[np.ndarray, "vector prompt"] = getattr(acted, way)
        level = SIGNIFICANT / len(WAYS)
        bound = prediction_bound(values[2:].mean(axis=1), level=level)
        brought, own = (above(values[row], bound, seed) for row in (0, 1))
        found[way] = brought if reliable else replace(brought, verdict="undetermined")
        found[f"{way}_own"] = own
        sampled = weights(values.shape[1], np.random.default_rng(seed)) @ values[:2].T
        low, high = ends(
            sampled[:, 0] / np.where(sampled[:, 1] > NEGLIGIBLE, sampled[:, 1], np.nan)
        )
        if own.verdict == "supported" and np.isfinite([low, high]).all():
            share = float(values[0].mean() / values[1].mean())
            interval = (min(float(low), share), max(float(high), share))
            found[f"{way}_share"] = Estimate(share, interval, values.shape[1], seed=seed)
    return found


def transfer_arrays(acted: Transferred) -> dict[str, np.ndarray]:
    """Return the mean effects by direction: the one brought here, the own one, the random ones."""
    return {way: getattr(acted, way).mean(axis=1) for way in WAYS}


def unit_rows(
    vectors: Sequence[Float64[np.ndarray, " d_model"]],
) -> list[Float64[Tensor, " d_model"]]:
    """Return ``vectors`` at unit length."""
    return [torch.from_numpy(each / np.linalg.norm(each)) for each in vectors]
