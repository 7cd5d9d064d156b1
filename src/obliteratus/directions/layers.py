"""Rank layers strong or weak: by separation without its noise, and by what they control."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from obliteratus.directions.layer_control import (
    FEWEST_NULLS,
    LEVEL,
    LayerControl,
    beyond_nulls,
    null_bound,
)
from obliteratus.shapes import Layer
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.statistics.comparison import Comparison
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.multiple import holm

Standing = Literal["strong", "weak", "undetermined"]

STRONG_SEPARATION = 0.75
"""Strong layers separate at least this share as well as the best: D has no absolute scale."""
STRONG_CONTROL = 0.5
"""They lower and induce refusal at least half as much as the layer that does so most."""
SHARES = {
    "separation": STRONG_SEPARATION,
    "bypass": STRONG_CONTROL,
    "induce": STRONG_CONTROL,
}


@dataclass(frozen=True)
class LayerRank:
    """What one block separates and controls, and where that places it.

    ``separation`` is D of :func:`obliteratus.directions.separation.separation`. ``bypass`` is the
    fall of the refusal log-odds of harmful select prompts with the block's direction removed
    everywhere, ``induce`` the rise on harmless ones with its δ added; their null is what random
    vectors stay below. ``kl`` is what the removal costs harmless prompts. The three are None where
    logits overflowed. Verdicts are Holm's over all layers and measures.
    """

    layer: int
    separation: Estimate
    bypass: Estimate | None
    induce: Estimate | None
    kl: Estimate | None
    standing: Standing

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LayerRank":
        """Make a rank of what :meth:`as_json` returned."""
        found = {
            name: None if data[name] is None else Estimate.from_json(data[name])
            for name in ("bypass", "induce", "kl")
        }
        separation = Estimate.from_json(data["separation"])
        return cls(layer=data["layer"], separation=separation, standing=data["standing"], **found)


def rank_layers(
    separations: Mapping[Layer, Comparison],
    controls: Mapping[Layer, LayerControl],
    nulls: Sequence[LayerControl],
    *,
    seed: int,
) -> tuple[LayerRank, ...]:
    """Return the rank of every block of ``controls``.

    A block is ``strong`` where its classes are apart, removing its direction lowers refusal and
    adding it induces refusal, each beyond its null at the 5 % level with Holm's correction (1979)
    over all layers and measures, and each by its share (``STRONG_SEPARATION``, ``STRONG_CONTROL``)
    of the largest such value. It is ``weak`` where the interval of a measure lies wholly at or
    below its null, or all are shown but one falls short of its share; else ``undetermined``. ‖δ‖
    plays no part.

    Removing or adding *any* vector moves log-odds a little, which enough prompts would tell from 0;
    so the null of the causal measures is not 0 but what random vectors do
    (:func:`obliteratus.directions.control.null_bound`). Their energy is not matched, and removing a
    direction of much energy may lower refusal by disturbing everything; adding one does not make a
    disturbed model refuse, so both are asked for. The largest value is a maximum over layers and
    flatters the best, which makes the shares harder to reach.
    """
    layers: list[int] = [layer for layer in controls if layer != "embedding"]
    tests: dict[str, Comparison] = {f"separation {each}": separations[each] for each in layers}
    for name, bound in _bounds(nulls).items():
        for layer in layers:
            if controls[layer].is_finite:
                values: np.ndarray = getattr(controls[layer], name)
                many = shuffles(len(layers))
                test = beyond_nulls(values, bound, seed=seed, permutations=many)
                tests[f"{name} {layer}"] = test
    adjusted = holm({name: test.p_value for name, test in tests.items()})
    found = {name: _judged(test.effect, adjusted[name]) for name, test in tests.items()}
    best = {
        measure: _best([found.get(f"{measure} {layer}") for layer in layers]) for measure in SHARES
    }
    return tuple(_ranked(layer, found, controls[layer], best, seed) for layer in layers)


def _ranked(
    layer: int,
    found: Mapping[str, Estimate],
    control: LayerControl,
    best: Mapping[str, float],
    seed: int,
) -> LayerRank:
    measured = {name: found.get(f"{name} {layer}") for name in SHARES}
    return LayerRank(
        layer=layer,
        separation=found[f"separation {layer}"],
        bypass=measured["bypass"],
        induce=measured["induce"],
        kl=bootstrap_mean(control.kl, seed=seed) if control.is_finite else None,
        standing=_standing(measured, best),
    )


def strong_layers(ranks: Sequence[LayerRank]) -> tuple[int, ...]:
    """Return the blocks that are ranked strong; none where the evidence does not show one."""
    return tuple(rank.layer for rank in ranks if rank.standing == "strong")


def shuffles(layers: int) -> int:
    """Return how many shuffles let a p-value pass Holm's correction over ``layers`` · 3 tests.

    The smallest two-sided p is 2 / (1 + shuffles), which has to be below half of LEVEL / tests.
    """
    return max(4999, int(2 * 2 * len(SHARES) * layers / LEVEL))


def _bounds(nulls: Sequence[LayerControl]) -> dict[str, float]:
    """Return the null of both causal measures; nothing where too few vectors could be scored."""
    finite = [null for null in nulls if null.is_finite]
    if len(finite) < FEWEST_NULLS:
        return {}
    return {
        "bypass": null_bound(np.array([null.bypass.mean() for null in finite])),
        "induce": null_bound(np.array([null.induce.mean() for null in finite])),
    }


def _judged(estimate: Estimate, p_value: float) -> Estimate:
    if p_value < LEVEL:
        return replace(estimate, verdict="supported")
    is_below = estimate.null is not None and estimate.interval[1] <= estimate.null
    return replace(estimate, verdict="not_supported" if is_below else "undetermined")


def _best(estimates: Sequence[Estimate | None]) -> float:
    shown = [each.value for each in estimates if each is not None and each.verdict == "supported"]
    return max(shown, default=0.0)


def _standing(measured: Mapping[str, Estimate | None], best: Mapping[str, float]) -> Standing:
    known = {name: each for name, each in measured.items() if each is not None}
    verdicts = {each.verdict for each in known.values()}
    if "not_supported" in verdicts:
        return "weak"
    if len(known) < len(measured) or verdicts != {"supported"}:
        return "undetermined"
    reaches = all(each.value >= SHARES[name] * best[name] for name, each in known.items())
    return "strong" if reaches else "weak"
