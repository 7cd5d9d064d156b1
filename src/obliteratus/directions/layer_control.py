"""What the direction of every layer controls: bypass and induce, and those of random vectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats

from obliteratus.directions.extraction import Extraction
from obliteratus.directions.filters import Removed
from obliteratus.directions.samples import Samples, samples_at
from obliteratus.directions.score import Scorer
from obliteratus.directions.selection import Candidate
from obliteratus.events import track
from obliteratus.probe.activations import Activations
from obliteratus.shapes import Layer
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.permutation import sign_flip

NULLS = 6
"""Random vectors: five degrees of freedom for the scatter between directions."""
STREAM = 0x6C61796572
"""Added to the seed, so that no other use of it has drawn the same vectors."""
FEWEST_NULLS = 3
LEVEL = 0.05

Score = Callable[[Layer, int, Samples, Removed], Candidate]
"""``score(layer, position, samples, removed)``: :meth:`Scorer.candidate`, or what stands for it."""


@dataclass(frozen=True)
class LayerControl:
    """What one direction does to each select prompt.

    In refusal log-odds, above 0 being control: ``bypass`` is the fall on harmful prompts with r
    removed from every write, ``induce`` the rise on harmless ones with δ added at its layer.
    ``kl`` is the first-token divergence that the removal costs on harmless ones.
    """

    bypass: Float64[np.ndarray, " harmful"]
    induce: Float64[np.ndarray, " harmless"]
    kl: Float64[np.ndarray, " harmless"]

    @property
    def is_finite(self) -> bool:
        """Whether no logits overflowed."""
        return all(bool(np.isfinite(part).all()) for part in (self.bypass, self.induce, self.kl))


def score_place(
    score: Score,
    extract: Extraction,
    samples: Samples,
    layers: tuple[Layer, ...],
    place: tuple[Layer, int],
) -> Candidate:
    """Score the first row that ``extract`` finds in ``samples``, which are of ``place``.

    It is removed from the writers of ``layers``: one call of ``score``.
    """
    rows = extract(samples, max_rank=1)
    return score(*place, samples, extract.removed_everywhere(samples, rows, layers))


def control_of(candidate: Candidate, scorer: Scorer) -> LayerControl:
    """Return the scores of ``candidate`` as changes from the untouched model."""
    return LayerControl(
        scorer.original.log_odds - candidate.bypass,
        candidate.induce - scorer.harmless_log_odds,
        candidate.kl,
    )


def controls_by_layer(
    activations: Activations,
    scorer: Scorer,
    extract: Extraction,
    position: int,
    *,
    known: Mapping[Layer, Candidate],
) -> dict[Layer, LayerControl]:
    """Return what the direction of every block controls, read at ``position``.

    One scorer call for each block that is not in ``known``.
    """
    layers: list[Layer] = list(range(scorer.model.anatomy.n_layers))
    found: dict[Layer, LayerControl] = {}
    for layer in track(layers, task="rank layers", total=len(layers), unit="layers"):
        candidate = known.get(layer)
        if candidate is None:
            samples = samples_at(activations, layer, position)
            place = (layer, position)
            candidate = score_place(scorer.candidate, extract, samples, scorer.layers, place)
        found[layer] = control_of(candidate, scorer)
    return found


def null_controls(
    activations: Activations, scorer: Scorer, position: int, *, seed: int
) -> tuple[LayerControl, ...]:
    """Return what ``NULLS`` random vectors control: as many scorer calls.

    They are uniform on the sphere, and each is as long as the δ of one of the blocks, which are
    taken at equal distances. Shuffled labels would be no null here: among the pairs of a model that
    refuses some of them, the difference varies along refusal itself.
    """
    n_layers = scorer.model.anatomy.n_layers
    generator = torch.Generator().manual_seed(STREAM + seed)
    found: list[LayerControl] = []
    for number in track(range(NULLS), task="rank nulls", total=NULLS, unit="vectors"):
        layer = round(number * (n_layers - 1) / (NULLS - 1))
        samples = samples_at(activations, layer, position)
        drawn = torch.randn(samples.delta.shape, generator=generator, dtype=torch.float64)
        row = (drawn / drawn.norm())[None]
        vector = replace(samples, delta=row[0] * samples.delta.norm().cpu())
        removed = Removed(dict.fromkeys(scorer.layers, row))
        found.append(control_of(scorer.candidate(layer, position, vector, removed), scorer))
    return tuple(found)


def null_bound(means: Float64[np.ndarray, " null"]) -> float:
    """Return what a further random vector stays below 95 times in 100.

    The one-sided prediction bound of a normal sample, m + t s √(1 + 1 / k) (Hahn 1969), never below
    0. It counts the scatter *between* vectors, which no number of prompts reduces.
    """
    count = len(means)
    reach = float(stats.t.ppf(1 - LEVEL, count - 1)) * float(np.sqrt(1 + 1 / count))
    return max(0.0, float(means.mean()) + reach * float(means.std(ddof=1)))


def beyond_nulls(
    values: Float64[np.ndarray, " prompt"], bound: float, *, seed: int, permutations: int
) -> Comparison:
    """Test whether the mean of ``values`` lies above ``bound``, by flipping the signs of the rest.

    ``effect`` is the mean with its BCa bootstrap interval over prompts and null ``bound``, without
    a verdict; ``p_value`` is the two-sided one, 1 where the mean is not above.
    """
    test = sign_flip(values - bound, seed=seed, permutations=permutations)
    low, high = test.effect.interval
    value = float(values.mean())
    effect = replace(test.effect, value=value, interval=(low + bound, high + bound), null=bound)
    return replace(test, effect=effect, p_value=test.p_value if value > bound else 1.0)
