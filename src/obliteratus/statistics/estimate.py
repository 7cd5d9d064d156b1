"""The one form in which a measured number leaves the program."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["supported", "not_supported", "undetermined"]


@dataclass(frozen=True)
class Estimate:
    """A measured number with its uncertainty.

    Attributes:
        value: The number, in the unit of what holds it.
        interval: Its lower and upper end: the 95 % interval, unless what holds it says otherwise.
        n: The number of independent units: prompts, documents or labelled answers.
        null: What the same measurement gives when there is nothing to find; null when it has none.
        seed: That of any resampling; null where the interval is a formula.
        verdict: The answer to the claim that the measurement was made for; ``undetermined`` without
            a claim.
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
