"""What a shared direction does in a model: its own acts there, a random one does not."""

import hashlib
from pathlib import Path

import pytest
import torch

from obliteratus.community.book import Run
from obliteratus.community.contribution import contribution_of, direction_facts
from obliteratus.community.recording import Entry
from obliteratus.community.shared import read_shared, shared_bytes
from obliteratus.community.universality import Given
from obliteratus.errors import UsageError
from obliteratus.pipeline.find import find_directions
from obliteratus.pipeline.shared_transfer import act_here
from obliteratus.settings import RunSettings
from obliteratus.store import Store
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.testing.refuser import tiny_settings
from obliteratus.verify.compare import compare


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def settings(refuser: Path) -> RunSettings:
    return tiny_settings(refuser)


@pytest.fixture(scope="module")
def shared(refuser: Path, cache: Store, settings: RunSettings, tmp_path_factory) -> Given:
    """The refuser's own direction, as somebody would have shared it."""
    output = tmp_path_factory.mktemp("found") / "directions"
    found = find_directions(str(refuser), output, settings, store=cache).directions
    original, edited, head = planted(Plant(prompts=8, layers=1, documents=6))
    report = compare(original, edited, edited_head=head)
    entry = Entry("obliterate", "m", settings, "advanced", report=report)
    run = Run("0" * 12, "finished", 0.0, 1.0, "x", entry.record(1.0), entry.local())
    data = shared_bytes(found)
    made = contribution_of(run, found, shared=hashlib.sha256(data).hexdigest())
    basis = read_shared(data, "x")
    width = next(iter(basis.values())).shape[1]
    facts = {"model_type": "llama", "layers": len(basis) - 1, "d_model": width}
    results = made.results.model_copy(
        update={"original": made.results.original.model_copy(update=facts)}
    )
    assert direction_facts(found) == made.directions
    return Given(made.model_copy(update={"results": results}), basis)


def test_its_own_direction_acts_and_a_random_one_does_not(
    refuser: Path, cache: Store, settings: RunSettings, shared: Given
) -> None:
    generator = torch.Generator().manual_seed(3)
    width = shared.shape[2]
    drawn = torch.randn(1, width, generator=generator)
    random = Given(shared.contribution, dict.fromkeys(shared.basis, drawn / drawn.norm()))
    own, other = act_here(str(refuser), [shared, random], settings, store=cache)
    assert own.estimates["removed"].verdict == "supported"
    assert own.estimates["removed"].value > 5 * (own.estimates["removed"].null or 0)
    assert other.estimates["removed"].verdict != "supported"
    assert other.estimates["added"].verdict != "supported"


def test_directions_of_another_shape_are_refused(
    refuser: Path, cache: Store, settings: RunSettings, shared: Given
) -> None:
    original = shared.contribution.results.original.model_copy(update={"layers": 99})
    results = shared.contribution.results.model_copy(update={"original": original})
    deep = Given(shared.contribution.model_copy(update={"results": results}), shared.basis)
    with pytest.raises(UsageError, match=r"the shared directions are of llama with 99 layers"):
        act_here(str(refuser), [deep], settings, store=cache)
