"""The prompts of one class, put to a model or to several variants of it in the same passes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.measure.generation import generate
from obliteratus.measure.writing import Completion
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.shares import Lineup
from obliteratus.probe.forward import last_hidden
from obliteratus.probe.variants import Variants
from obliteratus.prompts.contrast import Prompt

TASK = "study"


@dataclass
class Questions:
    """Prompts that are put to every variant at once; what is asked twice is computed once.

    Attributes:
        model: The model, under the hooks that follow ``lineup``.
        prompts: One class of prompts.
        system: The system prompt.
        batch_tokens: Of a forward pass: the same for every state of a model that is compared.
        max_new_tokens: Of an answer.
        lineup: The variants; None where the model is measured as it is.
    """

    model: LoadedModel
    prompts: Sequence[Prompt]
    system: str | None
    batch_tokens: int
    max_new_tokens: int
    lineup: Lineup | None = None
    _opened: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    @cached_property
    def encoded(self) -> Encoded:
        """The prompts of one variant."""
        return encode(self.model, [prompt.text for prompt in self.prompts], system=self.system)

    @cached_property
    def answers(self) -> tuple[tuple[Completion, ...], ...]:
        """What each variant says, prompt by prompt."""
        said = generate(
            self.model,
            self._repeated,
            max_new_tokens=self.max_new_tokens,
            task=TASK,
            opened=self._opened.__setitem__,
            variants=self._variants,
        )
        self._rest()
        return tuple(said[part] for part in self._parts)

    @cached_property
    def states(self) -> tuple[Float[Tensor, "prompt d_model"], ...]:
        """The final-norm outputs at the last tokens of the prompts, of each variant.

        Where answers have been given, they began with them: ask for answers first.
        """
        if self._opened:
            found = torch.stack([self._opened[row] for row in range(len(self._opened))])
        else:
            found = last_hidden(
                self.model,
                self._repeated,
                batch_tokens=self.batch_tokens,
                task=TASK,
                variants=self._variants,
            )
            self._rest()
        return tuple(found[part] for part in self._parts)

    def _rest(self) -> None:
        """Leave no strengths of a batch behind, which other passes would not fit."""
        if self.lineup is not None:
            self.lineup.turn_all(0)

    @property
    def _count(self) -> int:
        return 1 if self.lineup is None else len(self.lineup)

    @property
    def _repeated(self) -> Encoded:
        return replace(self.encoded, ids=self.encoded.ids * self._count)

    @property
    def _parts(self) -> list[slice]:
        each = len(self.prompts)
        return [slice(number * each, (number + 1) * each) for number in range(self._count)]

    @property
    def _variants(self) -> Variants | None:
        if self.lineup is None:
            return None
        of = [number for number in range(self._count) for _ in self.prompts]
        return Variants(tuple(of), self.lineup.turn)
