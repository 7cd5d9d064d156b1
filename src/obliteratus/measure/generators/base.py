"""What a generator is: it lets a model answer prompts; and the registry that finds it by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from obliteratus.events import Deviation
from obliteratus.measure.generation import Completion, Enough, Finished
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.registry import Registry


@dataclass(frozen=True)
class Task:
    """How long answers get, what progress calls them, and what stops one early.

    ``finished`` is told of every answer once, as soon as the generator has it. ``batch_rows``
    bounds a batch; 0 leaves it to the generator. ``thought_tokens`` are those that a thought may
    take before an answer, where the prompts let the model think.
    """

    name: str
    max_new_tokens: int
    enough: Enough | None = None
    finished: Finished | None = None
    batch_rows: int = 0
    thought_tokens: int = 0


class Generator(ABC):
    """Lets a model answer, greedily. ``identity`` is JSON-ready: answers are cached under it."""

    name: str

    @property
    def identity(self) -> dict[str, Any]:
        """The name, unless more decides."""
        return {"name": self.name}

    @abstractmethod
    def answer(self, model: LoadedModel, encoded: Encoded, task: Task) -> tuple[Completion, ...]:
        """Return the most probable continuation of each prompt, in prompt order.

        Raises:
            UsageError: the generator cannot run this model.
            MeasurementError: prompts or answers do not fit, or the answers are not this model's.
        """

    @abstractmethod
    def deviations(self, model: LoadedModel) -> tuple[Deviation, ...]:
        """Return what is not done as the model's generation configuration, or a reader, expects."""


GENERATORS: Registry[Callable[[], Generator]] = Registry(
    "generator", "obliteratus.measure.generators"
)
