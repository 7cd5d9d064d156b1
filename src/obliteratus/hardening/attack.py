"""An attacker who wants refusal gone: finds on select prompts the directions to take out.

Where to look comes first: the mean difference of every place is tried, and the place at which it
leaves the fewest refusals is kept. There, further directions are proposed in several ways; others
are read with what was found before already out, because a second path may open only then. For each
rank the best of all these is kept. Candidates are compared by the answers that are given without
them and not by first tokens, which say nothing of a refusal that comes later.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.category_svd import category_svd
from obliteratus.directions.paired_svd import leading_axes
from obliteratus.directions.samples import Samples, samples_at, unit_delta
from obliteratus.directions.whitened_svd import whitened_svd
from obliteratus.errors import DirectionError, MeasurementError
from obliteratus.events import Note, emit, track, without_progress
from obliteratus.hardening.recipe import HardenSettings
from obliteratus.measure.divergence import first_token_kl
from obliteratus.measure.generation import Completion, generate
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.judges.base import Asked, Judge, checked
from obliteratus.measure.outcomes import Outcome
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.bases import independent, orthonormalise
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import everywhere, removal
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.capture import probe
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.spread import limited, spread_indices
from obliteratus.shapes import Layer

SHALLOWEST = 0.2  # share of the layers above which places are: early ones tell little but words
NEW = 0.1  # of a direction's length outside those before it; with less it is not new
AGAIN = "read with the others out"
SAME = 1e-6  # largest difference of two projectors that are one candidate


@dataclass(frozen=True)
class Attack:
    """Directions to take out of every write, where they were read, and how they were found."""

    rows: Float64[Tensor, "rank d_model"]
    layer: Layer
    position: int
    extractor: str


@dataclass(frozen=True)
class Seen:
    """What became of every harmful prompt, and first-token KL in nats of every harmless one."""

    outcomes: tuple[Outcome, ...]
    kl: Float64[Tensor, " harmless"]

    @property
    def appeal(self) -> tuple[int, float]:
        """What an attacker sorts by: many answers, then little else changed. Less is better."""
        return -self.outcomes.count("compliance"), float(self.kl.mean())


@contextlib.contextmanager
def without(model: LoadedModel, rows: Float[Tensor, "rank d_model"] | None) -> Generator[None]:
    """Take ``rows`` out of every write while the block runs; None takes nothing out."""
    edits = () if rows is None else removal(model, everywhere(model, rows))
    with edited(model, edits):
        yield


class Subject:
    """A model with some prompts of both classes: what it does with directions out."""

    def __init__(
        self, model: LoadedModel, prompts: ContrastSet, judge: Judge, settings: HardenSettings
    ) -> None:
        """Encode the prompts and read what the untouched model predicts for harmless ones."""
        self.model, self.prompts, self.judge = model, prompts, judge
        self.max_new_tokens = settings.verify.max_new_tokens
        self.texts = tuple(prompt.text for prompt in prompts.harmful)
        system = settings.prompts.system
        self.harmful: Encoded = encode(model, self.texts, system=system)
        harmless = [prompt.text for prompt in prompts.harmless]
        self.harmless: Encoded = encode(model, harmless, system=system)
        self.head: Head = head_of(model)
        self.before = self._states(self.harmless)

    def seen(self, rows: Float[Tensor, "rank d_model"] | None) -> Seen:
        """Return what the model does without ``rows``. Its answers are judged and dropped."""
        with without_progress(), without(self.model, rows):
            asked = Asked(self.model, self.texts, self.harmful, self._said, self._harmful_states)
            rulings = checked(self.judge, self.judge.judge(asked), len(self.texts))
            after = self._states(self.harmless)
            kl = first_token_kl(self.before, self.head, after, self.head)
        return Seen(tuple(ruling.outcome for ruling in rulings), kl)

    def _said(self) -> tuple[Completion, ...]:
        return generate(
            self.model, self.harmful, max_new_tokens=self.max_new_tokens, task="answers"
        )

    def _harmful_states(self) -> Float[Tensor, "prompt d_model"]:
        return self._states(self.harmful)

    def _states(self, encoded: Encoded) -> Float[Tensor, "prompt d_model"]:
        return last_hidden(self.model, encoded, task="first tokens")


class Attacker:
    """Looks for the directions of the model of ``laboratory`` on its fit and select prompts."""

    def __init__(self, laboratory: Laboratory, judge: Judge, settings: HardenSettings) -> None:
        """``judge`` rules on the answers that are given without a candidate."""
        self.laboratory, self.settings = laboratory, settings
        some = limited(laboratory.splits.select, settings.curve.select_prompts)
        self.subject = Subject(laboratory.model, some, judge, settings)
        self.activations, _ = laboratory.probed()
        self._told: set[str] = set()

    @cached_property
    def first(self) -> Attack:
        """The best single mean difference: the direction that refusal depends on most."""
        found = [
            Attack(unit_delta(samples), layer, position, "difference_of_means")
            for layer, position in self._places()
            for samples in [samples_at(self.activations, layer, position)]
        ]
        return self._best(found, "where to attack")

    def best(self, rank: int, before: Attack | None = None) -> Attack | None:
        """Return the best ``rank`` directions, or None where too few can be found.

        Proposals are made at the place of :attr:`first`; with ``before``, an attack of a smaller
        rank, also of what is read at every place while it is out.
        """
        place = (self.first.layer, self.first.position)
        samples = samples_at(self.activations, *place)
        found: list[Attack] = []

        def add(attack: Attack) -> None:
            is_new = not any(_is_same(attack.rows, each.rows) for each in found)
            if len(attack.rows) == rank and is_new:
                found.append(attack)

        for name, propose in PROPOSALS.items():
            try:
                add(Attack(propose(samples, rank).cpu(), *place, name))
            except DirectionError as error:  # no pairs or categories, say
                if name not in self._told:
                    emit(Note(f"the attacker goes without '{name}': {error}"))
                self._told.add(name)
        if before is not None:
            for attack in self._behind(before, rank):
                add(attack)
        return self._best(found, f"rank {rank}") if found else None

    def _behind(self, before: Attack, rank: int) -> Iterator[Attack]:
        """Yield ``before`` with what is read at every place while it is out, ``rank`` in all."""
        laboratory = self.laboratory
        with without_progress(), without(laboratory.model, before.rows):
            activations = probe(
                laboratory.model,
                laboratory.splits.fit,
                self.settings.probe,
                system=self.settings.prompts.system,
            )
        for layer, position in self._spread:
            try:
                more = mean_then_axes(
                    samples_at(activations, layer, position), rank - len(before.rows)
                )
            except DirectionError:  # nothing tells the classes apart any more at this place
                continue
            rows = torch.cat([before.rows, more.to(before.rows)])
            kept = independent(rows, tolerance=NEW)
            yield Attack(orthonormalise(rows[list(kept)]), layer, position, AGAIN)

    def _best(self, candidates: Sequence[Attack], task: str) -> Attack:
        if len(candidates) == 1:
            return candidates[0]
        seen = [
            self.subject.seen(each.rows).appeal
            for each in track(candidates, task=task, total=len(candidates), unit="candidates")
        ]
        return candidates[min(range(len(candidates)), key=lambda index: seen[index])]

    @property
    def _spread(self) -> tuple[tuple[Layer, int], ...]:
        last = max(self.activations.positions)
        curve = self.settings.curve
        layers = spread_layers(self.laboratory.model, curve.places, curve.depth)
        return tuple((layer, last) for layer in layers)

    def _places(self) -> tuple[tuple[Layer, int], ...]:
        """Return the selected place, if one is selected, and layers spread over the depth."""
        places = list(self._spread)
        try:
            tokens = self.laboratory.refusal_tokens(self.activations)
            selected, _ = self.laboratory.distilled(self.activations, tokens)
        except (DirectionError, MeasurementError) as error:
            emit(Note(f"the attacker goes without a selection by first tokens: {error}"))
        else:
            if selected.source_layer is not None and selected.position is not None:
                places.insert(0, (selected.source_layer, selected.position))
        return tuple(dict.fromkeys(places))


def spread_layers(model: LoadedModel, count: int, depth: float) -> tuple[int, ...]:
    """Return up to ``count`` layers, spread from a fifth of the depth to the share ``depth``."""
    low, high = (round(share * (model.anatomy.n_layers - 1)) for share in (SHALLOWEST, depth))
    among = range(low, high + 1)
    return tuple(among[index] for index in spread_indices(len(among), count))


def mean_then_axes(samples: Samples, rank: int) -> Float64[Tensor, "rank d_model"]:
    """Return the mean difference, then the leading axes of the differences without it."""
    first = unit_delta(samples)
    if rank == 1:
        return first
    rest = samples.differences - (samples.differences @ first.T) @ first
    return orthonormalise(torch.cat([first, leading_axes(rest, samples.delta, rank - 1)]))


PROPOSALS: dict[str, Callable[[Samples, int], Float64[Tensor, "rank d_model"]]] = {
    "mean, then pairs": mean_then_axes,
    "category_svd": lambda samples, rank: category_svd(samples, max_rank=rank),
    "whitened_svd": lambda samples, rank: whitened_svd(samples, max_rank=rank),
}
"""Ways to find more than one direction at a place."""


def _is_same(one: Float64[Tensor, "rank d_model"], other: Float64[Tensor, "rank d_model"]) -> bool:
    return bool(torch.allclose(one.T @ one, other.T @ other, rtol=0, atol=SAME))
