"""What a model can do, item by item, so that two models are compared on the same items."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from obliteratus.models.loaded import LoadedModel


@dataclass(frozen=True)
class ItemScores:
    """How one model does on the items of a task; more is better.

    ``scores`` has a number for each of ``ids``, which are hashes of the items: equal ones are the
    same item. ``metric`` says what the numbers are, ``source`` who wrote the task. ``cut`` counts
    the requests whose beginning was left out because they are longer than the model takes.
    """

    task: str
    metric: str
    source: str
    ids: tuple[str, ...]
    scores: tuple[float, ...]
    cut: int = 0

    @property
    def is_binary(self) -> bool:
        """Whether each item is right or wrong, and nothing between."""
        return all(score in (0.0, 1.0) for score in self.scores)


@runtime_checkable
class CapabilityTask(Protocol):
    """A task that any model can be given."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    def identity(self, model: LoadedModel, system: str | None) -> Mapping[str, Any]:
        """Return everything, JSON-ready, that decides the scores beside the model's weights."""
        ...

    def score(self, model: LoadedModel, system: str | None, *, progress: str) -> ItemScores:
        """Give the items to ``model``; ``progress`` is the task that Progress events name.

        Raises:
            MeasurementError: the model cannot be given these items.
        """
        ...
