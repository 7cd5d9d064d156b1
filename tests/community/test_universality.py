"""Shared directions are called alike where random ones would not be, and only there."""

import dataclasses
import hashlib

import pytest
import torch

from local_hub import LocalHub
from obliteratus.community.contribution import Contribution, as_bytes, contribution_of
from obliteratus.community.pull import pull
from obliteratus.community.shared import read_shared, shared_bytes, shared_path
from obliteratus.community.universality import Given, alike, with_directions
from obliteratus.directions.directions import Directions
from obliteratus.errors import StorageError, UsageError
from obliteratus.events import Event, Note, listening

DATA_SET = "lab/runs"
WIDTH = 16  # of the planted models


def rows(*, rank: int = 1, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].T.contiguous()


@pytest.fixture
def contribution(recorded) -> Contribution:
    return contribution_of(recorded("advanced", prompts=8))


def given(contribution: Contribution, basis: torch.Tensor, *, source: str = "source", **shape: int):
    original = contribution.results.original.model_copy(update={"source": source, **shape})
    results = contribution.results.model_copy(update={"original": original})
    sha256 = hashlib.sha256(basis.numpy().tobytes() + source.encode()).hexdigest()
    found = contribution.model_copy(update={"results": results, "sha256": sha256})
    return Given(found, {"layer.1": basis.float(), "layer.2": basis.float()})


def test_one_direction_found_twice_is_alike(contribution) -> None:
    base = rows()
    near = base + 0.05 * rows(seed=1)
    (pair,) = alike([given(contribution, base), given(contribution, near / near.norm())])
    assert pair.verdict == "supported"
    assert pair.degrees[0] < 10
    assert pair.adjusted_p < 1e-6
    assert pair.chance == pytest.approx(WIDTH**-0.5)


def test_random_directions_are_called_alike_as_seldom_as_promised(contribution) -> None:
    found = [
        alike([given(contribution, rows(seed=n)), given(contribution, rows(seed=1000 + n))])[0]
        for n in range(200)
    ]
    share = sum(pair.verdict == "supported" for pair in found) / len(found)
    assert share <= 0.08  # 5 % promised; a binomial of 200 stays below 8.5 % in 97.5 % of cases
    assert min(pair.p_value for pair in found) < 0.2  # and the test is not blind


def test_a_direction_inside_a_subspace_is_seen(contribution) -> None:
    space = rows(rank=3, seed=5)
    inside = (space[0] + space[2])[None] / 2**0.5
    (pair,) = alike([given(contribution, space), given(contribution, inside)])
    assert pair.degrees[0] == pytest.approx(0, abs=0.1)
    assert len(pair.cosines) == 1
    assert pair.verdict == "supported"


def test_two_models_at_chance_are_undetermined_and_one_model_is_different(contribution) -> None:
    one = given(contribution, torch.eye(WIDTH, dtype=torch.float64)[:1])
    other = torch.eye(WIDTH, dtype=torch.float64)[1:2]
    (pair,) = alike([one, given(contribution, other)])
    assert (pair.is_same_model, pair.verdict) == (True, "not_supported")
    (pair,) = alike([one, given(contribution, other, source="another")])
    assert (pair.is_same_model, pair.verdict) == (False, "undetermined")
    (pair,) = alike([one, given(contribution, one.basis["layer.1"].double(), source="another")])
    assert pair.verdict == "supported"


def test_other_shapes_are_not_compared(contribution) -> None:
    wide = given(contribution, rows(width=32), d_model=32)
    deep = given(contribution, rows(), layers=99)
    assert alike([given(contribution, rows()), wide, deep]) == ()


def directions(basis: torch.Tensor) -> Directions:
    return Directions(basis={1: basis, "embedding": basis}, scale={1: 1.0}, method="x",
                      provenance={"secret": "/home/lovelace"})  # fmt: skip


def test_what_is_shared_is_read_back_and_holds_nothing_else() -> None:
    data = shared_bytes(directions(rows(rank=2)))
    assert b"lovelace" not in data
    assert shared_bytes(dataclasses.replace(directions(rows(rank=2)), provenance={})) == data
    found = read_shared(data, "x")
    assert set(found) == {"layer.1", "embedding"}
    assert torch.allclose(found["layer.1"].double(), rows(rank=2), atol=1e-6)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"x" * 20, "is no safetensors file"),
        (shared_bytes(directions(2 * rows())), "holds no directions at"),
        (shared_bytes(directions(rows(rank=16))), "holds no directions at"),
        (
            shared_bytes(directions(torch.full((1, WIDTH), torch.nan, dtype=torch.float64))),
            "holds no directions at",
        ),
    ],
)
def test_what_is_no_directions_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(StorageError, match=why):
        read_shared(data, "x")


def test_shared_directions_are_fetched_and_a_changed_file_is_left_out(
    local_hub: LocalHub, recorded, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "cache"))
    repo = local_hub.repo(DATA_SET, "dataset", private=False)
    notes: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    for number, method in enumerate(("basic", "advanced", "aggressive")):
        basis = rows() if number < 2 else rows(seed=7)
        data = shared_bytes(directions(basis + 1e-6 * number))
        sha256 = hashlib.sha256(data).hexdigest()
        found = contribution_of(recorded(method, prompts=8), shared=sha256)
        repo.files[found.path] = as_bytes(found)
        repo.files[shared_path(sha256)] = data if number < 2 else data + b"x"
    with pytest.raises(UsageError, match="nothing was fetched"):
        with_directions(DATA_SET)
    pull(DATA_SET)
    with listening(hear):
        found = with_directions(DATA_SET)
    assert {each.contribution.method for each in found} == {"basic", "advanced"}
    assert len(notes) == 1
    assert "missing or not what its hash says" in notes[0]
    (pair,) = alike(found)
    assert pair.verdict == "supported"
    with pytest.raises(UsageError, match=r"shares its directions\. Whoever contributes"):
        with_directions(DATA_SET, behaviour="humour")
