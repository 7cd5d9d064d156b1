"""A concept cone is orthonormal, each of its vectors and mixtures works, and it ends where not."""

from pathlib import Path

import pytest
import torch

from obliteratus.directions.cone import MIXTURES, ConeSearch, mixtures
from obliteratus.directions.control import control, no_control
from obliteratus.directions.directions import Directions
from obliteratus.directions.rdo import rdo
from obliteratus.settings import RdoSettings
from obliteratus.store import Store
from obliteratus.testing.bench import Bench, bench

SETTINGS = RdoSettings(
    steps=15, prompts=5, check_every=5, target_tokens=4, rate=0.1, samples=1, patience=9, cone=2
)


@pytest.fixture(scope="module")
def case(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(refuser, Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def found(case: Bench) -> Directions:
    objective = case.objective(SETTINGS)
    return rdo(case.start, case.scorer, objective, SETTINGS, max_kl=5.0)


def test_mixtures_have_unit_length_and_no_negative_coefficient() -> None:
    drawn = mixtures(200, 3, torch.Generator().manual_seed(0))
    assert float(drawn.min()) >= 0
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(
        drawn.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.1, rtol=0
    )


def test_the_vectors_of_a_cone_are_orthonormal_and_the_same_everywhere(found: Directions) -> None:
    assert found.method == "cone"
    assert found.rank == 2
    for rows in found.basis.values():
        assert rows is found.basis[0]
    gram = found.basis[0] @ found.basis[0].T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_every_vector_and_every_mixture_ablates_and_induces(case: Bench, found: Directions) -> None:
    layer, length = found.provenance["rdo"]["added_at"], found.provenance["rdo"]["length"]
    mixed = mixtures(6, 2, torch.Generator().manual_seed(5)) @ found.basis[0]
    nothing = no_control(case.scorer)
    for row in (*found.basis[0], *mixed):
        measured = control(case.scorer, row, layer, length)
        assert measured.beyond(nothing, seed=0)[0]
        assert measured.effect.log_odds.mean() < nothing.effect.log_odds.mean() - 1
        assert measured.induce.mean() > nothing.induce.mean() + 1
    facts = found.provenance["rdo"]["cones"][1]
    assert len(facts["mixtures"]) == MIXTURES
    assert facts["mixtures_beyond_null"] == 1


def test_a_vector_without_effect_is_not_kept(case: Bench) -> None:
    """Nothing moves, so the second vector stays at random."""
    settings = SETTINGS.model_copy(update={"rate": 0.0, "steps": 1, "cone": 4})
    found = rdo(case.start, case.scorer, case.objective(settings), settings, max_kl=5.0)
    cones = found.provenance["rdo"]["cones"]
    assert [cone["dimension"] for cone in cones] == [1, 2]
    assert [cone["kept"] for cone in cones] == [True, False]
    assert found.rank == 1
    torch.testing.assert_close(found.basis[0], case.start.basis[0])


def test_a_vector_must_do_more_than_the_null(case: Bench, found: Directions) -> None:
    """What is beyond no edit at all is not beyond a null that does as much."""
    search = ConeSearch(case.scorer, case.objective(SETTINGS), SETTINGS, max_kl=5.0, seed=0)
    settings = SETTINGS.model_copy(update={"steps": 0})
    still = ConeSearch(case.scorer, case.objective(settings), settings, max_kl=5.0, seed=0)
    best, checks = still.improved(found.basis[0])
    assert search.cone(best, checks, no_control(case.scorer)).is_kept
    assert not search.cone(best, checks, best.controls[0]).is_kept


def test_a_span_beyond_the_divergence_allowed_is_not_kept(case: Bench, found: Directions) -> None:
    settings = SETTINGS.model_copy(update={"steps": 0})
    search = ConeSearch(case.scorer, case.objective(settings), settings, max_kl=1e-6, seed=0)
    best, checks = search.improved(found.basis[0])
    assert not search.cone(best, checks, no_control(case.scorer)).is_kept
