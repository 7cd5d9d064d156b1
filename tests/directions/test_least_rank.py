"""``distill.min_rank``: directions that do something together only are not tried one by one."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.distill import distill
from obliteratus.directions.score import Effect, Scorer
from obliteratus.errors import DirectionError
from obliteratus.probe.activations import Activations
from obliteratus.probe.capture import probe
from obliteratus.settings import DistillSettings
from obliteratus.testing.planted_transformer import planted

CATEGORIES = 4


@cache
def cone() -> tuple[Activations, Scorer]:
    """Return a model that refuses each of four categories by a direction of its own."""
    plant = planted("cone")
    scorer = Scorer(plant.model, plant.prompts(32, seed=1), plant.refusal_tokens, prompts=24)
    return probe(plant.model, plant.prompts(96)), scorer


def found(*, max_rank: int = CATEGORIES, **values: object) -> tuple[Directions, float]:
    """Return the directions and the largest refusal log-odds that they leave."""
    activations, scorer = cone()
    settings = DistillSettings.model_validate(
        {"extractor": "category_svd", "max_depth": 0.84, "max_rank": max_rank, **values}
    )
    directions = distill(activations, scorer, settings)
    return directions, float(np.max(scorer.effect(directions.basis).log_odds))


def test_one_by_one_the_search_stops_before_a_cone_is_out() -> None:
    directions, left = found()
    assert directions.rank < CATEGORIES
    assert left > 0


def test_from_the_least_rank_on_all_of_it_is_taken_out() -> None:
    directions, left = found(min_rank=CATEGORIES)
    assert directions.rank == CATEGORIES
    assert left < 0
    tried: list[Mapping[str, float]] = directions.provenance["ranks"]
    assert [each["value"] for each in tried] == [CATEGORIES]


def test_more_than_the_extractor_gives_are_not_asked_of_it() -> None:
    directions, _ = found(min_rank=8, max_rank=8)
    assert directions.rank == CATEGORIES


def test_a_least_rank_that_costs_more_than_the_gate_allows_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = cone()[1]
    real = scorer.effect

    def effect(bases: Mapping[object, Tensor], **knobs: object) -> Effect:
        seen, rank = real(bases, **knobs), max(len(rows) for rows in bases.values())
        return replace(seen, kl=seen.kl + 0.3 * (rank == CATEGORIES))

    monkeypatch.setattr(scorer, "effect", effect)
    with pytest.raises(DirectionError, match=r"without 4 directions .* is 0\.30"):
        found(min_rank=CATEGORIES)
