"""Do runs on one model, or on models of one shape, find one direction?

Coordinates of the stream mean the same in two models only where one comes from the other. Rows of
one original are compared as they are. Rows of different originals are compared where the shape is
the same, because fine-tunes of one base share its coordinates: alike beyond chance is then evidence
of one base and one direction, and at chance nothing is said, since the coordinates may be
unrelated. Other shapes are not compared; `analyze` brings a direction from one model to another
through a map, where both models are at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor

from obliteratus.community.contribution import Contribution
from obliteratus.community.pull import fetched, pulled
from obliteratus.community.received import Received
from obliteratus.community.shared import FOLDER, read_shared, shared_path
from obliteratus.errors import StorageError, UsageError
from obliteratus.events import Note, emit
from obliteratus.release.hub import hub_api
from obliteratus.statistics.estimate import Verdict
from obliteratus.statistics.multiple import holm
from obliteratus.store import sha256_of_file

SIGNIFICANT = 0.05
Shape = tuple[str, int, int]


@dataclass(frozen=True)
class Given:
    """A contribution with its directions: layer's name -> orthonormal rows."""

    contribution: Contribution
    basis: Mapping[str, Float[Tensor, "rank d_model"]]

    @property
    def shape(self) -> Shape:
        """The architecture, how many blocks it has and how wide it is."""
        original = self.contribution.results.original
        return original.model_type, original.layers, original.d_model

    @property
    def source(self) -> str:
        """The fingerprint of the model that they were found in."""
        return self.contribution.results.original.source

    @property
    def label(self) -> str:
        """The model, the method, and the beginning of the hash."""
        found = self.contribution
        name = found.results.original.name or f"a local {found.results.original.model_type}"
        return f"{name} {found.method or found.kind} {found.sha256[:8]}"


@dataclass(frozen=True)
class Alike:
    """How the directions of two runs lie to each other, at the layer where they are nearest.

    Attributes:
        first: The hash of one run.
        second: That of the other.
        labels: Both in words.
        is_same_model: Whether both were found in one original.
        layer: Where they were compared.
        cosines: Of the principal angles, the largest first.
        along: How much of the first direction of one lies in the other's, as a cosine: the mean of
            both ways (squared).
        chance: What that is for random directions, root mean square.
        p_value: That random directions are as near, at any of the layers; not corrected for pairs.
        adjusted_p: Holm's over all pairs.
        verdict: ``supported`` is alike beyond chance. Otherwise ``not_supported`` in one original,
            and ``undetermined`` in two, whose coordinates may be unrelated.
    """

    first: str
    second: str
    labels: tuple[str, str]
    is_same_model: bool
    layer: str
    cosines: tuple[float, ...]
    along: float
    chance: float
    p_value: float
    adjusted_p: float = 1.0
    verdict: Verdict = "undetermined"

    @property
    def degrees(self) -> tuple[float, ...]:
        """The principal angles in degrees, the smallest first."""
        return tuple(float(np.degrees(np.arccos(min(1.0, each)))) for each in self.cosines)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        names = ("first", "second", "is_same_model", "layer", "along", "chance", "p_value",
                 "adjusted_p", "verdict")  # fmt: skip
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return found | {"labels": list(self.labels), "degrees": list(self.degrees)}


def alike(given: Sequence[Given]) -> tuple[Alike, ...]:
    """Return every pair of ``given`` that can be compared, the most alike first.

    The test is exact for random directions: the squared length of a random unit vector in a
    subspace of rank r is Beta(r/2, (d − r)/2). Where the two ways differ, the smaller counts twice;
    the layers at which the two differ count as tests of their own (Bonferroni).
    """
    pairs = [
        _pair(one, other)
        for one, other in combinations(given, 2)
        if one.shape == other.shape and set(one.basis) & set(other.basis)
    ]
    if not pairs:
        return ()
    adjusted = holm({str(place): pair.p_value for place, pair in enumerate(pairs)})
    found = [_judged(pair, adjusted[str(place)]) for place, pair in enumerate(pairs)]
    return tuple(sorted(found, key=lambda each: (each.adjusted_p, -each.along)))


def _judged(pair: Alike, adjusted: float) -> Alike:
    verdict: Verdict = "not_supported" if pair.is_same_model else "undetermined"
    verdict = "supported" if adjusted < SIGNIFICANT else verdict
    return replace(pair, adjusted_p=adjusted, verdict=verdict)


def _pair(one: Given, other: Given) -> Alike:
    layers = sorted(set(one.basis) & set(other.basis))
    tried = [(layer, *_compared(one.basis[layer], other.basis[layer])) for layer in layers]
    layer, cosines, along, chance, p_value = min(tried, key=lambda each: each[-1])
    tests = len({tuple(np.round(each[1], 6)) for each in tried})
    return Alike(
        first=one.contribution.sha256,
        second=other.contribution.sha256,
        labels=(one.label, other.label),
        is_same_model=one.source == other.source,
        layer=layer,
        cosines=tuple(float(each) for each in cosines),
        along=along,
        chance=chance,
        p_value=min(1.0, tests * p_value),
    )


def _compared(
    one: Float[Tensor, "rank d_model"], other: Float[Tensor, "more d_model"]
) -> tuple[Float64[np.ndarray, " angle"], float, float, float]:
    """Return cosines of the principal angles, the mean share of the first rows, chance and p."""
    a, b = (_orthonormal(each) for each in (one, other))
    width = a.shape[1]
    cosines = np.linalg.svd(a @ b.T, compute_uv=False)
    shares = [float(np.square(b @ a[0]).sum()), float(np.square(a @ b[0]).sum())]
    ranks = [len(b), len(a)]
    p_values = [
        float(stats.beta.sf(min(1.0, share), rank / 2, (width - rank) / 2)) if rank < width else 1.0
        for share, rank in zip(shares, ranks, strict=True)
    ]
    chance = float(np.sqrt(np.mean(ranks) / width))
    ways = 1 if ranks == [1, 1] else 2  # of two lines, both ways are one
    return cosines, float(np.sqrt(np.mean(shares))), chance, min(1.0, ways * min(p_values))


def _orthonormal(rows: Float[Tensor, "rank d_model"]) -> Float64[np.ndarray, "rank d_model"]:
    """Return an orthonormal basis of ``rows`` whose first row is that of ``rows``."""
    q, r = torch.linalg.qr(rows.to(torch.float64).T)
    return (q * torch.diagonal(r).sign()).T.numpy()


def with_directions(data_set: str, *, behaviour: str | None = None) -> tuple[Given, ...]:
    """Return the pulled runs of ``data_set`` that share their directions, and these.

    Files that are not what their hash says are left out with a note.

    Raises:
        UsageError: nothing was pulled, or no run shares its directions.
        HubError: the files cannot be fetched.
    """
    found = pulled(data_set)
    rows = [
        row
        for row in found.rows
        if row.contribution.shared and behaviour in (None, row.contribution.behaviour)
    ]
    if not rows:
        raise UsageError(
            f"no run of {data_set} that was fetched shares its directions. Whoever contributes "
            "with --share-directions does."
        )
    folder = fetched(hub_api(), data_set, found.commit, f"{FOLDER}/*.safetensors")
    return tuple(each for row in rows if (each := _given(row, folder)) is not None)


def _given(row: Received, folder: Path) -> Given | None:
    shared = row.contribution.shared
    assert shared is not None
    path = folder / shared_path(shared)
    width = row.contribution.results.original.d_model
    try:
        if not path.is_file() or sha256_of_file(path) != shared:
            raise StorageError(f"{path.name} is missing or not what its hash says.")
        basis = read_shared(path.read_bytes(), path.name)
        if not basis or any(rows.shape[1] != width for rows in basis.values()):
            raise StorageError(f"{path.name} is not of a model of width {width}.")
    except StorageError as error:
        emit(Note(f"left out: {error}"))
        return None
    return Given(row.contribution, basis)
