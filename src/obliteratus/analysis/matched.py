"""Random directions that hold as much energy in the weights as a given one, over all writers.

A plain random direction moves another amount of weight than one that a model writes along. Here a
random draw a is turned towards the direction of most (or least) energy in the span of a, Ga, G²a,
…, with G = Σ W Wᵀ over the writers, by the angle at which the energies are equal. All tokens have
a long mean in common, which no difference of classes has a part of: a direction turned towards it
would hold its energy there, and its removal would shift every token by a constant. So each draw has
as much of the mean as the given direction, and all turning is orthogonal to it.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.intervening import random_rows
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.models.anatomy import WeightSite
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.behind import norm_behind
from obliteratus.operator.matrices import write_gram
from obliteratus.operator.removal import site_edit

TURNS = 8
"""Passes over the weights until the span holds a direction with the energy asked for."""
BISECTIONS = 50
ONE = torch.ones(1, dtype=torch.float64)


def energy_along(model: LoadedModel, row: Float64[Tensor, " d_model"]) -> float:
    """Return Σ‖ΔW‖² of taking a unit ``row`` out of every writer.

    Raises:
        MeasurementError: weights are packed.
    """
    return _Span(model, row[None]).energy(row)


def energy_matched(
    model: LoadedModel,
    row: Float64[Tensor, " d_model"],
    mean: Float64[Tensor, " d_model"],
    generator: torch.Generator,
) -> Float64[Tensor, " d_model"]:
    """Return a random unit direction whose removal changes the weights as much as that of ``row``.

    Both have the same cosine to ``mean``, the part of the stream that all tokens have in common.

    Raises:
        MeasurementError: weights are packed, or no such direction is found.
    """
    common = mean / torch.linalg.vector_norm(mean)
    along = float(common @ row)

    def completed(free: Tensor) -> Float64[Tensor, " d_model"]:
        """Return the unit direction with this much of the mean and the rest along ``free``."""
        return along * common + math.sqrt(max(0.0, 1 - along**2)) * free

    wanted = energy_along(model, row)
    drawn = random_rows(1, len(row), generator)[0]
    start = orthonormalise(torch.stack([common, drawn]))[1]
    frame = torch.stack([common, start])
    span = _Span(model, frame)
    goes_up = span.energy(completed(start)) < wanted
    for _ in range(TURNS):
        try:
            frame = orthonormalise(torch.cat([frame, span.spread[-1:]]))
        except DirectionError:
            break  # the writers turn the span into itself, so nothing further can be reached
        span = _Span(model, frame)
        end = span.extreme(start, largest=goes_up)
        if (span.energy(completed(end)) >= wanted) != goes_up:
            continue
        low, high, found = 0.0, math.pi / 2, row
        for _ in range(BISECTIONS):
            angle = (low + high) / 2
            mixed = math.cos(angle) * start + math.sin(angle) * end
            found = completed(mixed / torch.linalg.vector_norm(mixed))
            if (span.energy(found) < wanted) == goes_up:
                low = angle
            else:
                high = angle
        return found
    raise MeasurementError(
        f"no random direction holds the energy {wanted:.3e} in the weights, as the one that is "
        "asked about does, so it has no matched null. Leave this analysis out with --modules."
    )


@dataclass(frozen=True)
class _Site:
    site: WeightSite
    gram: Float64[Tensor, "many many"]


class _Span:
    """Orthonormal rows, what the writers make of them, and the energy of whatever they span."""

    def __init__(self, model: LoadedModel, frame: Float64[Tensor, "many d_model"]) -> None:
        self.frame = frame
        self.spread = torch.zeros_like(frame)
        self._model = model
        self._sites: list[_Site] = []
        for site in model.anatomy.plain_writers:
            weight = model.module.get_parameter(site.name).detach()
            if not weight.is_floating_point():
                raise MeasurementError(
                    f"{site.name} is packed, and its energy along a direction cannot be read. Load "
                    "the model without --quantize."
                )
            behind = norm_behind(model, site)
            read = frame if behind is None else behind.read_along(frame)
            gram, product = write_gram(weight, read, site.layout)
            self._sites.append(_Site(site, gram))
            self.spread += product if behind is None else behind.written(product)

    def energy(self, row: Float64[Tensor, " d_model"]) -> float:
        inside = self.frame @ row
        total = 0.0
        for each in self._sites:
            write = site_edit(self._model, each.site, row[None], ONE).write_basis[0]
            total += float(write @ write) * float(inside @ each.gram @ inside)
        return total

    def extreme(
        self, start: Float64[Tensor, " d_model"], *, largest: bool
    ) -> Float64[Tensor, " d_model"]:
        """Return the direction of most (least) energy that is orthogonal to the first row."""
        inner = (self.spread @ self.frame.T)[1:, 1:]
        vectors = torch.linalg.eigh((inner + inner.T) / 2).eigenvectors
        row = vectors[:, -1 if largest else 0] @ self.frame[1:]
        return row if float(row @ start) >= 0 else -row
