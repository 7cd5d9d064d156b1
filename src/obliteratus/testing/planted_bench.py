"""The bench of a planted model: what an analysis asks for, from its construction or not at all."""

from collections.abc import Callable
from typing import Any

from obliteratus.analysis.bench import Bench
from obliteratus.directions.directions import Directions
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.probe.capture import probe
from obliteratus.prompts.contrast import ContrastSet, Splits
from obliteratus.settings import AnalyzeSettings
from obliteratus.testing.planted_transformer import PlantedTransformer


def planted_bench(
    plant: PlantedTransformer,
    sets: ContrastSet | Splits,
    /,
    *,
    directions: Directions | None = None,
    fit: ContrastSet | None = None,
    compared: Callable[[], Any] | None = None,
    **settings: Any,
) -> Bench:
    """Return a bench of ``plant`` on the prompts of ``sets`` (one set stands for all splits).

    ``fit`` is probed when activations are asked for. An analysis that asks for these, or for
    ``directions``, where none are given fails: it was not to need them. ``settings`` are those of
    ANALYZE, ``compared`` makes the bench of a second model.
    """

    def given(value: Any) -> Any:
        assert value is not None, "the analysis asks for something that it was not to need"
        return value

    return Bench(
        model=plant.model,
        splits=sets if isinstance(sets, Splits) else Splits(sets, sets, sets),
        behaviour=BEHAVIOURS["refusal"],
        settings=AnalyzeSettings(**settings),
        probed=lambda: probe(plant.model, given(fit)),
        distilled=lambda: given(directions),
        calibrated=lambda: plant.refusal_tokens,
        compared=compared,
    )
