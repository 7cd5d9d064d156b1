"""Planted categories have the cosines and covariances that they say."""

import itertools

import pytest
import torch
from torch.nn import functional

from obliteratus.errors import UsageError
from obliteratus.testing.planted_categories import PlantedCategories, planted_categories


def shown(plant: PlantedCategories) -> float:
    deltas = [plant.delta(name) for name in plant.harmful]
    pairs = [
        functional.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(deltas, 2)
    ]
    return float(torch.stack(pairs).mean())


def test_noise_hides_one_direction_and_a_shared_set_pretends_to_one() -> None:
    """The figures of mathematics.md: 0.36 at n = 32 and d = 1024, 0.68 with a shared set."""
    apart = planted_categories(cosine=1.0)
    together = planted_categories(cosine=1.0, is_shared=True)
    assert apart.plain_cosine == pytest.approx(0.36, abs=0.005)
    assert together.plain_cosine == pytest.approx(0.68, abs=0.005)
    assert shown(apart) == pytest.approx(0.36, abs=0.05)
    assert shown(together) == pytest.approx(0.68, abs=0.05)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("unequal", [1.0, 4.0])
def test_the_plain_cosine_is_as_predicted(cosine: float, is_shared: bool, unequal: float) -> None:
    plant = planted_categories(1, cosine=cosine, is_shared=is_shared, unequal=unequal)
    assert shown(plant) == pytest.approx(plant.plain_cosine, abs=0.06)
    gram = plant.directions @ plant.directions.T
    assert torch.allclose(gram, torch.full_like(gram, cosine).fill_diagonal_(1.0))


def test_many_prompts_show_the_true_cosine() -> None:
    plant = planted_categories(cosine=0.3, n=2000, width=64)
    assert shown(plant) == pytest.approx(0.3, abs=0.03)


def test_covariances_are_uneven_and_unequal_as_asked() -> None:
    plant = planted_categories(n=4000, width=32, decay=1.0, unequal=4.0)
    harmful, harmless = (side["a"].double().T.cov() for side in (plant.harmful, plant.harmless))
    assert float(harmless.trace()) == pytest.approx(32, rel=0.05)
    assert float(harmful.trace()) == pytest.approx(4 * 32, rel=0.05)
    values = torch.linalg.eigvalsh(harmless)
    assert float(values[-1] / values[0]) == pytest.approx(32, rel=0.3)
    axes = [torch.linalg.eigh(cov).eigenvectors[:, -1] for cov in (harmful, harmless)]
    assert abs(float(axes[0] @ axes[1])) < 0.7
    even = planted_categories(n=4000, width=32)
    values = torch.linalg.eigvalsh(even.harmless["a"].double().T.cov())
    assert float(values[-1] / values[0]) < 1.6


def test_a_shared_set_is_one_set() -> None:
    shared = planted_categories(is_shared=True, width=64)
    assert shared.harmless["a"] is not shared.harmless["b"]
    assert torch.equal(shared.harmless["a"], shared.harmless["b"])
    apart = planted_categories(width=64)
    assert not torch.equal(apart.harmless["a"], apart.harmless["b"])


def test_a_cosine_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="a number from 0 to 1"):
        planted_categories(cosine=1.5)
