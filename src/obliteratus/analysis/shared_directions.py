"""Do the class differences of two models point the same way? By disjoint halves of the prompts.

Both models saw the same prompts, so that the noise of a mean in one is that of the other, turned:
the differences of one half of the prompts in one model are therefore held against those of the
other half in the other. The null has the covariance of what it replaces, because noise alone
shares the directions along which prompts vary most: each difference less the mean of its group,
with random signs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64

from obliteratus.analysis.similarity import judged, left_out, overlap, shared
from obliteratus.statistics.estimate import Estimate

DEALS = 4  # of the prompts into halves, each used both ways
FEWEST = 8
"""Prompts of a category: four in each half, so that leaving some out still leaves two."""


@dataclass(frozen=True)
class Contrasts:
    """Harmful minus harmless of every unit (a pair, or a harmful prompt), in the same coordinates.

    ``first`` are those of the model that the directions come from, brought to the other, ``second``
    those of the other. ``members`` says which units belong to which group.
    """

    first: Float64[np.ndarray, "unit width"]
    second: Float64[np.ndarray, "unit width"]
    members: Bool[np.ndarray, "group unit"]

    @classmethod
    def of(
        cls,
        first: Float64[np.ndarray, "unit width"],
        second: Float64[np.ndarray, "unit width"],
        labels: Sequence[str | None],
    ) -> "Contrasts | None":
        """Group the units by label; None where fewer than two labels have eight units."""
        names = [
            name
            for name in sorted({str(each) for each in labels if each is not None})
            if sum(each == name for each in labels) >= FEWEST
        ]
        if len(names) < 2:
            return None
        members = np.array([[each == name for each in labels] for name in names])
        rows = members.any(axis=0)
        return cls(first[rows], second[rows], members[:, rows])

    def some(self, rows: np.ndarray) -> "Contrasts":
        """Return the units ``rows``."""
        return Contrasts(self.first[rows], self.second[rows], self.members[:, rows])

    def nothing(self, rng: np.random.Generator) -> "Contrasts":
        """Return units of the first model that differ by noise alone."""
        noise = self.first.copy()
        for member in self.members:
            noise[member] -= noise[member].mean(axis=0)
        return replace(self, first=noise * rng.choice([-1.0, 1.0], size=(len(noise), 1)))

    def halves(
        self, seed: int
    ) -> list[tuple[Float64[np.ndarray, "group width"], Float64[np.ndarray, "group width"]]]:
        """Return the groups' means of one half in the first model, of the other in the second."""
        rng = np.random.default_rng(seed)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for _ in range(DEALS):
            half = np.zeros(len(self.first), dtype=bool)
            for member in self.members:
                units = rng.permutation(np.flatnonzero(member))
                half[units[: len(units) // 2]] = True
            for side in (half, ~half):
                one = self._means(self.first, side)
                found.append((one, self._means(self.second, ~side)))
        return found

    def _means(
        self, units: Float64[np.ndarray, "unit width"], side: Bool[np.ndarray, " unit"]
    ) -> Float64[np.ndarray, "group width"]:
        weight = (self.members & side).astype(np.float64)
        return (weight / weight.sum(axis=1, keepdims=True)) @ units


def shared_span(contrasts: Contrasts, *, permutations: int, seed: int) -> Estimate:
    """Return the mean squared cosine of the principal angles between the groups' spans."""
    return _estimated(shared, contrasts, permutations=permutations, seed=seed)


def signed_cosine(contrasts: Contrasts, *, permutations: int, seed: int) -> Estimate:
    """Return the cosine of the mean differences of all units; noise brings it nearer to 0."""
    everything = np.ones((1, len(contrasts.first)), dtype=bool)
    return _estimated(
        _cosine, replace(contrasts, members=everything), permutations=permutations, seed=seed
    )


def angles(contrasts: Contrasts, seed: int) -> Float64[np.ndarray, " rank"]:
    """Return the cosines of the principal angles, smallest angle first, the mean over halves."""
    return np.mean([overlap(one, other) for one, other in contrasts.halves(seed)], axis=0)


def _cosine(
    one: Float64[np.ndarray, "group width"], other: Float64[np.ndarray, "group width"]
) -> float:
    return float(one[0] @ other[0] / (np.linalg.norm(one) * np.linalg.norm(other)))


def _estimated(
    measure: Callable[[np.ndarray, np.ndarray], float],
    contrasts: Contrasts,
    *,
    permutations: int,
    seed: int,
) -> Estimate:
    rng = np.random.default_rng(seed)

    def value(given: Contrasts) -> float:
        return float(np.mean([measure(one, other) for one, other in given.halves(seed)]))

    null = np.array([value(contrasts.nothing(rng)) for _ in range(permutations)])
    n = len(contrasts.first)
    left = [value(contrasts.some(rows)) for rows in left_out(n, rng)]
    return judged(value(contrasts), left, null, n=n, seed=seed)
