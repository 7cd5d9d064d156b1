"""A front of two quantities that are both better when lower, and what is tied on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from obliteratus.statistics.estimate import Estimate


@dataclass(frozen=True)
class Contender:
    """One of those that are compared: its name, and its two estimates."""

    name: str
    first: Estimate
    second: Estimate

    @property
    def pair(self) -> tuple[Estimate, Estimate]:
        """Both estimates."""
        return self.first, self.second


@dataclass(frozen=True)
class Rank:
    """Where a contender stands: who beats it, and who is tied with it, by name.

    One that nobody beats is on the front.
    """

    beaten_by: tuple[str, ...]
    tied_with: tuple[str, ...]


def beats(one: Contender, other: Contender) -> bool:
    """Say whether ``one`` is surely lower in one quantity, and not higher in the other.

    Surely: the intervals do not meet. That asks for more than a test of the difference at the same
    level does, which leaves room for the many pairs of a table. Two of which neither beats the
    other are tied, or trade one quantity for the other.
    """
    pairs = list(zip(one.pair, other.pair, strict=True))
    is_surely_lower = any(_is_below(a, b) for a, b in pairs)
    return is_surely_lower and all(a.value <= b.value for a, b in pairs)


def are_tied(one: Contender, other: Contender) -> bool:
    """Say whether the intervals of both quantities meet: nothing tells the two apart."""
    pairs = zip(one.pair, other.pair, strict=True)
    return not any(_is_below(a, b) or _is_below(b, a) for a, b in pairs)


def ranks(contenders: Sequence[Contender]) -> Mapping[str, Rank]:
    """Return where each of ``contenders`` stands among all of them, by name."""
    return {
        each.name: Rank(
            tuple(other.name for other in contenders if other is not each and beats(other, each)),
            tuple(
                other.name for other in contenders if other is not each and are_tied(other, each)
            ),
        )
        for each in contenders
    }


def _is_below(a: Estimate, b: Estimate) -> bool:
    return a.interval[1] < b.interval[0]
