"""Several variants of one model in one forward pass: each row of a batch is of one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.prefix import SharedPrefix, shared_prefix


@dataclass(frozen=True)
class Variants:
    """Of which variant of a model each of some prompts is asked, and what brings them about.

    ``of`` has a number from 0 for each prompt. Before every pass ``turn`` is told the variant of
    each of its rows; the hooks that make the difference follow it.
    """

    of: tuple[int, ...]
    turn: Callable[[Sequence[int]], None]

    @property
    def count(self) -> int:
        """How many variants there are."""
        return max(self.of) + 1

    def among(self, prompts: Sequence[int]) -> "Variants":
        """Return the variants of ``prompts``, as those of the first, the second ... row."""
        return Variants(tuple(self.of[prompt] for prompt in prompts), self.turn)

    def begin(self, prompts: Sequence[int], prefix: SharedPrefix | None) -> SharedPrefix | None:
        """Bring about the variants of the rows of the next pass, and return the prefix of each."""
        rows = [self.of[prompt] for prompt in prompts]
        self.turn(rows)
        return None if prefix is None else prefix.at(rows)


def prefix_of_all(
    model: LoadedModel, token_ids: tuple[int, ...], variants: Variants | None
) -> SharedPrefix:
    """Run ``token_ids`` once for every variant, or once where there are none.

    Raises:
        MeasurementError: see :func:`obliteratus.probe.prefix.shared_prefix`.
    """
    if variants is None:
        return shared_prefix(model, token_ids)
    variants.turn(range(variants.count))
    return shared_prefix(model, token_ids, rows=variants.count)
