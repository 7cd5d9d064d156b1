"""The result of a hypothesis test: an effect with its interval, and a p-value."""

from dataclasses import dataclass
from typing import Any

from obliteratus.statistics.estimate import Estimate


@dataclass(frozen=True)
class Comparison:
    """A two-sided test. ``test`` names it; ``effect`` is on the scale the test speaks about.

    ``p_value`` is not corrected for other tests: pass a family of them through
    :func:`obliteratus.statistics.multiple.holm`.
    """

    effect: Estimate
    p_value: float
    test: str

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_json` reads back."""
        return {"effect": self.effect.as_json(), "p_value": self.p_value, "test": self.test}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Comparison":
        """Make a comparison of what :meth:`as_json` returned."""
        return cls(Estimate.from_json(data["effect"]), data["p_value"], data["test"])
