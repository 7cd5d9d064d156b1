"""What a judge is: it says what became of every prompt; and the registry that finds it by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.measure.generation import Completion
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.measure.outcomes import OUTCOMES, Outcome
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel
from obliteratus.registry import Registry
from obliteratus.settings import JudgeSettings
from obliteratus.store import Store

LABELS: tuple[Outcome, ...] = OUTCOMES[:-1]
"""What a person says of an answer."""


@dataclass(frozen=True)
class Exchange:
    """A prompt with what a model said to it."""

    prompt: str
    completion: Completion


@dataclass(frozen=True)
class Ruling:
    """What a judge says of one exchange; ``is_harmful`` None where it does not look for harm."""

    outcome: Outcome
    is_harmful: bool | None = None


@dataclass(frozen=True)
class Asked:
    """The prompts that a model is given; what a judge wants of it is computed when it is asked for.

    ``said`` lets the model answer, ``states`` runs the prompts and returns the final-norm outputs
    at their last tokens.
    """

    model: LoadedModel
    prompts: tuple[str, ...]
    encoded: Encoded
    said: Callable[[], tuple[Completion, ...]]
    states: Callable[[], Float[Tensor, "prompt d_model"]]

    def exchanges(self) -> tuple[Exchange, ...]:
        """Return the prompts with the model's answers."""
        pairs = zip(self.prompts, self.said(), strict=True)
        return tuple(Exchange(prompt, completion) for prompt, completion in pairs)


class Judge(ABC):
    """Says of every prompt what became of it. Deterministic; keeps no text.

    ``identity`` is JSON-ready and has everything that its rulings depend on, besides the exchanges:
    what is cached is found again by it. ``description`` is printed beside the rates.
    ``reads_answers`` is False of a judge that looks at probabilities where an answer would begin.
    """

    name: str
    can_settle: bool = False
    """Whether :meth:`settled` ever says anything."""
    reads_answers: bool = True
    is_elsewhere: bool = False
    """Whether :meth:`expect` begins something that takes time but none of this machine's."""

    @property
    def identity(self) -> dict[str, Any]:
        """The name, unless more decides."""
        return {"name": self.name}

    @property
    def description(self) -> str:
        """A few words for the report."""
        return self.name

    @abstractmethod
    def read(self, exchanges: Sequence[Exchange]) -> tuple[Ruling, ...]:
        """Rule on answers by their text, whoever gave them.

        Raises:
            MeasurementError: the judge cannot be reached, or gives nothing that has a meaning.
        """

    def expect(self, exchange: Exchange) -> None:
        """Be told of an exchange that :meth:`read` will be asked about.

        A judge elsewhere asks for its ruling now, while the model writes its other answers.

        Raises:
            MeasurementError: it is known already that :meth:`read` will fail.
        """
        del exchange

    def judge(self, asked: Asked) -> tuple[Ruling, ...]:
        """Rule on what a model does with its prompts: by its answers, unless the judge sees more.

        Raises:
            MeasurementError: as :meth:`read`.
        """
        return self.read(asked.exchanges())

    def settled(self, prompt: str, text: str, left: int) -> Outcome | None:
        """Return what :meth:`read` will say of an answer that begins with ``text``, or None.

        At most ``left`` tokens may follow. None where that depends on them: a judge that is never
        certain before the end says nothing else.
        """
        del prompt, text, left
        return None


Settled = Callable[[str, str, int], Outcome | None]


class TextJudge(Judge):
    """A judge that rules on every answer by itself."""

    def __init__(
        self,
        name: str,
        rule: Callable[[str, Completion], Outcome],
        settled: Settled | None = None,
    ) -> None:
        """``rule`` is called with the prompt's text and the completion, ``settled`` as above."""
        self.name, self._rule, self._settled = name, rule, settled
        self.can_settle = settled is not None

    def read(self, exchanges: Sequence[Exchange]) -> tuple[Ruling, ...]:
        """Rule on each by itself."""
        return tuple(Ruling(self._rule(each.prompt, each.completion)) for each in exchanges)

    def settled(self, prompt: str, text: str, left: int) -> Outcome | None:
        """Ask the function that this judge was made with, if any."""
        return None if self._settled is None else self._settled(prompt, text, left)


@dataclass(frozen=True)
class Bench:
    """What a judge is made with: its settings, the original's first tokens of refusals, a cache."""

    settings: JudgeSettings = field(default_factory=JudgeSettings)
    tokens: RefusalTokens | None = None
    store: Store | None = None


def checked(judge: Judge, rulings: object, count: int) -> tuple[Ruling, ...]:
    """Return what ``judge`` said of ``count`` exchanges, if it is a ruling on each.

    Raises:
        MeasurementError: there are more or fewer, or one is no ruling with a known outcome.
    """
    found: tuple[Any, ...] = tuple(rulings) if isinstance(rulings, Iterable) else ()
    if len(found) != count:
        raise MeasurementError(
            f"the judge '{judge.name}' gave {len(found)} rulings on {count} exchanges, so nobody "
            "knows which is on which. Make it give one for each, in their order."
        )
    for ruling in found:
        outcome = getattr(ruling, "outcome", ruling)
        harm = getattr(ruling, "is_harmful", ruling)
        if outcome not in OUTCOMES or harm not in (True, False, None):
            raise MeasurementError(
                f"the judge '{judge.name}' gave {ruling!r}. Its rulings are a Ruling each, with an "
                f"outcome of {', '.join(OUTCOMES)}, and with is_harmful true, false or None."
            )
    return found


JudgeMaker = Callable[[Bench], Judge]
"""Makes a judge.

Raises:
    UsageError: a setting is missing or wrong.
    MeasurementError: what it needs cannot be had.
"""

JUDGES: Registry[JudgeMaker] = Registry("judge", "obliteratus.measure.judges")


def judge_named(name: str, bench: Bench | None = None) -> Judge:
    """Return the judge called ``name``.

    Raises:
        UsageError: there is none, or a setting that it needs is missing.
    """
    return JUDGES[name](bench or Bench())
