"""The one form in which a measured number leaves the program."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["supported", "not_supported", "undetermined"]


@dataclass(frozen=True)
class Estimate:
    """A measured number with its uncertainty.

    ``interval`` is the 95 % interval unless a function says otherwise, ``null`` what the same
    measurement gives when there is nothing to find (None when it has no null), ``n`` the number of
    independent units, ``seed`` that of any resampling. ``verdict`` answers the claim that the
    measurement was made for; without a claim it is ``undetermined``.
    """

    value: float
    interval: tuple[float, float]
    n: int
    null: float | None = None
    seed: int | None = None
    verdict: Verdict = "undetermined"

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Estimate":
        """Make an estimate of what :meth:`as_json` returned."""
        low, high = data["interval"]
        rest: dict[str, Any] = {key: value for key, value in data.items() if key != "interval"}
        return cls(interval=(low, high), **rest)
