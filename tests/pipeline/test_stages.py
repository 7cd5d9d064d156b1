"""What a stage found is found again by whatever asks for the same, and by nothing else."""

from pathlib import Path

import pytest

from obliteratus.directions.directions import Directions
from obliteratus.pipeline import stages
from obliteratus.pipeline.stages import Laboratory
from obliteratus.store import Store
from obliteratus.testing.bench import bench
from obliteratus.testing.refuser import tiny_settings

SEARCH = ("distill.tune.steps=2", "distill.tune.prompts=4")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Directions:
        raise AssertionError("directions were selected a second time")

    monkeypatch.setattr(stages, "distill", fail)


def distilled(refuser: Path, store: Store, *assignments: str) -> tuple[Directions, bool]:
    made = bench(refuser, store)
    settings = tiny_settings(refuser, "basic", *assignments)
    laboratory = Laboratory(made.model, made.splits, settings, store)
    return laboratory.distilled(made.activations, laboratory.refusal_tokens(made.activations))


def test_a_search_begins_with_what_was_selected_before(
    refuser: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    start, _ = distilled(refuser, store)
    request.getfixturevalue("no_selection")
    found, is_cached = distilled(refuser, store, *SEARCH)
    again, is_cached_now = distilled(refuser, store, *SEARCH)
    assert (is_cached, is_cached_now) == (False, True)
    assert found.provenance["settings"]["tune"]["steps"] == 2
    assert start.provenance["settings"]["tune"]["steps"] == 0
    assert found.provenance["selection"] == start.provenance["selection"]
    assert again.provenance == found.provenance
    with pytest.raises(AssertionError, match="a second time"):
        distilled(refuser, store, "distill.max_kl=4.0", *SEARCH)
