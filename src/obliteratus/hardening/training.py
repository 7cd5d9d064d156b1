"""Train a model to refuse, in part of the steps while the direction of its refusal is out.

Harmful prompts: mean cross-entropy of the refusal's tokens. Harmless ones: mean KL(original ‖
model) along the answers that the original gave. Where the direction is out, it is out for both.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from obliteratus.errors import MeasurementError
from obliteratus.events import Note, emit, track
from obliteratus.hardening.attack import Attacker, without
from obliteratus.hardening.curve import hardening_code
from obliteratus.hardening.lessons import Lesson, Lessons, answer_states, lessons
from obliteratus.hardening.lora import Update, updated
from obliteratus.hardening.recipe import HardenSettings, RecipeSettings
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.judges.base import Judge
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.bases import independent, orthonormalise
from obliteratus.pipeline.stages import Laboratory
from obliteratus.store import content_key, read_json, write_json

WARMUP = 0.1  # of a round's steps
LARGEST_NORM = 1.0  # of the gradient: one odd batch must not undo the others
NEW = 0.1  # of a direction's length outside those of earlier rounds; with less it is not new
ROUND, TENSORS = "round.json", "update.safetensors"


@dataclass(frozen=True)
class Round:
    """What one round did.

    Attributes:
        layer: Where the direction that was out had been read; None where none was looked for.
        position: At which token, counted from the end.
        rank: How many directions were out, those of earlier rounds included.
        refusal_loss: Mean cross-entropy of refusals over the last quarter of the steps, in nats.
        ablated_loss: The same over those of these steps in which directions were out, or None.
        kl: Mean KL on harmless answers over the last quarter of the steps, in nats.
    """

    layer: int | str | None
    position: int | None
    rank: int
    refusal_loss: float
    ablated_loss: float | None
    kl: float


@dataclass(frozen=True)
class Step:
    """What one step measured before it moved."""

    refusal: float
    kl: float
    is_ablated: bool


def harden_weights(
    laboratory: Callable[[], Laboratory], judge: Judge, settings: HardenSettings
) -> tuple[Lessons, tuple[Round, ...]]:
    """Train the model of ``laboratory`` as the recipe says, and merge what was learned into it.

    ``laboratory`` is called again in every round, because the weights have changed. A finished
    round is in its store, so a killed training goes on with the next one.

    Raises:
        UsageError: peft is not installed, or see :func:`obliteratus.hardening.lessons.lessons`.
        MeasurementError: the loss is not finite.
    """
    start = laboratory()
    model, recipe = start.model, settings.recipe
    learned = lessons(model, start.splits.fit, judge, settings)
    head, rounds = head_of(model), list[Round]()
    directions: Tensor | None = None
    with updated(model, rank=recipe.rank, seed=settings.seed) as update:
        for number in range(recipe.rounds):
            place = None
            if recipe.ablated_share > 0:
                place = Attacker(laboratory(), judge, settings).best_one
                rows = place.rows
                directions = rows if directions is None else added(directions, rows)
            train = _Training(model, head, update, learned, directions, settings)
            steps = _resumed(start, train, number, settings)
            rounds.append(
                _round(
                    steps,
                    None if place is None else place.layer,
                    None if place is None else place.position,
                    0 if directions is None else len(directions),
                )
            )
    return learned, tuple(rounds)


def added(
    known: Float64[Tensor, "rank d_model"], row: Float64[Tensor, "1 d_model"]
) -> Float64[Tensor, "larger d_model"]:
    """Return ``known`` with ``row`` behind it, orthonormal; without it where it is not new."""
    rows = torch.cat([known, row.to(known)])
    kept = independent(rows, tolerance=NEW)
    return orthonormalise(rows[list(kept)])


class _Training:
    """One round: its optimiser, its order of prompts and its schedule."""

    def __init__(
        self,
        model: LoadedModel,
        head: Head,
        update: Update,
        learned: Lessons,
        directions: Float64[Tensor, "rank d_model"] | None,
        settings: HardenSettings,
    ) -> None:
        self.model, self.head, self.update = model, head, update
        self.learned, self.directions = learned, directions
        self.settings, self.recipe = settings, settings.recipe

    def run(self, number: int) -> tuple[Step, ...]:
        """Train for the steps of round ``number`` and return what each measured."""
        recipe = self.recipe
        parameters = self.update.parameters
        optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(self.settings.seed * 1000 + number)
        harmful = _shuffled(self.learned.harmful, recipe.batch, generator)
        harmless = _shuffled(self.learned.harmless, recipe.batch, generator)
        found: list[Step] = []
        numbers = range(recipe.steps)
        for step in track(numbers, task=f"round {number + 1}", total=recipe.steps, unit="steps"):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * schedule(step, recipe.steps)
            is_ablated = self.directions is not None and is_turn(step, recipe.ablated_share)
            rows = self.directions if is_ablated else None
            with torch.enable_grad(), without(self.model, rows):
                refusal, kl = self.loss(next(harmful), next(harmless))
                total = refusal + recipe.kl_weight * kl
                if not bool(torch.isfinite(total)):
                    raise MeasurementError(
                        f"the loss of step {step + 1} is not finite. Lower recipe.learning_rate, "
                        "or load the model with --dtype float32."
                    )
                total.backward()
            nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            optimiser.step()
            optimiser.zero_grad()
            found.append(Step(refusal.item(), kl.item(), is_ablated))
        return tuple(found)

    def loss(
        self, harmful: Sequence[Lesson], harmless: Sequence[Lesson]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the mean cross-entropy of refusals and mean KL on harmless answers, in nats."""
        states = answer_states(self.model, [*harmful, *harmless])
        refusal, kl = list[Tensor](), list[Tensor]()
        for row, hidden in zip((*harmful, *harmless), states, strict=True):
            log_q = self.head.log_probabilities(hidden)
            if row.base is None:
                target = torch.tensor(row.answer, device=log_q.device)[:, None]
                refusal.append(-log_q.gather(1, target).mean())
            else:
                with torch.no_grad():
                    log_p = self.head.log_probabilities(row.base)
                kl.append((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())
        return torch.stack(refusal).mean(), torch.stack(kl).mean()


def schedule(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: a short rise, then a cosine down to 0."""
    rise = min(1.0, (step + 1) / max(1.0, WARMUP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def is_turn(step: int, share: float) -> bool:
    """Say whether ``step`` is one of the ``share`` of all steps, which are spread evenly."""
    return math.floor((step + 1) * share) > math.floor(step * share)


def _shuffled(
    rows: Sequence[Lesson], batch: int, generator: torch.Generator
) -> Iterator[list[Lesson]]:
    """Yield batches for ever; every lesson is seen once before any is seen again."""
    waiting: list[int] = []
    while True:
        chosen: list[int] = []
        while len(chosen) < min(batch, len(rows)):
            if not waiting:
                waiting = torch.randperm(len(rows), generator=generator).tolist()
            chosen.append(waiting.pop())
        yield [rows[index] for index in chosen]


def _resumed(
    start: Laboratory, train: _Training, number: int, settings: HardenSettings
) -> tuple[Step, ...]:
    """Run a round, or take its steps and what it learned from the store."""
    recipe: RecipeSettings = settings.recipe
    key = content_key(
        "hardening",
        **start.identity,
        prompts=[part.sha256 for part in (start.splits.fit, start.splits.select)],
        recipe=recipe.model_dump(mode="json", exclude={"rounds"}),
        curve=[settings.curve.places, settings.curve.select_prompts],
        distill=settings.distill.model_dump(mode="json"),
        positions=settings.probe.positions,
        tokens=settings.verify.max_new_tokens,
        judge=settings.verify.judge.model_dump(mode="json"),
        seed=settings.seed,
        round=number,
        training=hardening_code(),
    )

    def compute() -> tuple[tuple[Step, ...], Mapping[str, Tensor]]:
        return train.run(number), train.update.tensors()

    def save(value: tuple[tuple[Step, ...], Mapping[str, Tensor]], folder: Path) -> None:
        steps, tensors = value
        write_json(folder / ROUND, [vars(step) for step in steps])
        save_file({name: each.contiguous() for name, each in tensors.items()}, folder / TENSORS)

    def load(folder: Path) -> tuple[tuple[Step, ...], Mapping[str, Tensor]]:
        records: list[dict[str, Any]] = read_json(folder / ROUND)
        return tuple(Step(**record) for record in records), load_file(folder / TENSORS)

    (steps, tensors), is_cached = start.store.cached(key, compute, save, load)
    if is_cached:
        emit(Note(f"round {number + 1} was trained before and is taken from the cache."))
        train.update.load(tensors)
    return steps


def _round(
    steps: Sequence[Step], layer: int | str | None, position: int | None, rank: int
) -> Round:
    last = steps[-max(1, len(steps) // 4) :]
    plain, ablated = (
        [step.refusal for step in last if step.is_ablated == is_out] for is_out in (False, True)
    )
    every = plain or ablated
    return Round(
        layer=layer,
        position=position,
        rank=rank,
        refusal_loss=sum(every) / len(every),
        ablated_loss=sum(ablated) / len(ablated) if ablated else None,
        kl=sum(step.kl for step in last) / len(last),
    )
