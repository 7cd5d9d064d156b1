"""Train a model to refuse, in part of the steps while directions of its refusal are out.

Harmful prompts: mean cross-entropy of the refusal's tokens. Harmless ones: mean KL(original ‖
model) along the answers that the original gave. Where directions are out, they are out for both.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float, Float64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from obliteratus.errors import MeasurementError
from obliteratus.events import Note, emit, track
from obliteratus.hardening.adversary import Adversary
from obliteratus.hardening.attack import without
from obliteratus.hardening.lessons import Lesson, Lessons, answer_states, lessons
from obliteratus.hardening.lora import Update, updated
from obliteratus.hardening.recipe import HardenSettings
from obliteratus.hardening.search import hardening_code
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import Judge
from obliteratus.models.loaded import LoadedModel
from obliteratus.pipeline.stages import Laboratory
from obliteratus.store import content_key, read_json, write_json

WARMUP = 0.1  # of the steps
LARGEST_NORM = 1.0  # of the gradient: one odd batch must not undo the others
FACTS, TENSORS = "training.json", "update.safetensors"


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes:
        steps: How many steps it had.
        ablated_steps: In how many of them directions were out.
        readings: How often the model was read for directions.
        refusal_loss: Mean cross-entropy of refusals over the last quarter of the steps, in nats a
            token, of those with nothing out (of all where there is none).
        first_loss: That of their first token alone, from which the others follow.
        ablated_loss: The mean over those steps in which directions were out, or None.
        ablated_first: That of the first token in these, or None.
        kl: Mean KL on harmless answers over the last quarter of the steps, in nats.
    """

    steps: int
    ablated_steps: int
    readings: int
    refusal_loss: float
    first_loss: float
    ablated_loss: float | None
    ablated_first: float | None
    kl: float


@dataclass(frozen=True)
class Step:
    """What one step measured before it moved."""

    refusal: float
    first: float
    kl: float
    is_ablated: bool


def harden_weights(
    laboratory: Laboratory, judge: Judge, settings: HardenSettings
) -> tuple[Lessons, Training]:
    """Train the model of ``laboratory`` as the recipe says, and merge what was learned into it.

    What was learned is in the store of ``laboratory``, so the same training is done once.

    Raises:
        UsageError: peft is not installed, or see :func:`obliteratus.hardening.lessons.lessons`.
        DirectionError: see :meth:`obliteratus.hardening.adversary.Adversary.draw`.
        MeasurementError: the loss is not finite.
    """
    model, recipe = laboratory.model, settings.recipe
    learned = lessons(model, laboratory.splits.fit, judge, settings)
    with updated(model, rank=recipe.lora_rank, seed=settings.seed) as update:
        trainer = _Trainer(model, update, learned, settings)
        adversary = Adversary(model, laboratory.splits.fit, settings)
        facts = _once(laboratory, trainer, adversary, settings)
    return learned, facts


class _Trainer:
    """The optimiser of a training, its order of prompts and its schedule."""

    def __init__(
        self, model: LoadedModel, update: Update, learned: Lessons, settings: HardenSettings
    ) -> None:
        self.model, self.head, self.update = model, head_of(model), update
        self.learned, self.settings, self.recipe = learned, settings, settings.recipe

    def run(self, adversary: Adversary) -> Training:
        """Train for all steps; ``adversary`` draws what is out in some of them."""
        recipe = self.recipe
        parameters = self.update.parameters
        optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(self.settings.seed)
        harmful = _shuffled(self.learned.harmful, recipe.batch, generator)
        harmless = _shuffled(self.learned.harmless, recipe.batch, generator)
        found: list[Step] = []
        for step in track(range(recipe.steps), task="train", total=recipe.steps, unit="steps"):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * schedule(step, recipe.steps)
            is_ablated = is_turn(step, recipe.ablated_share)
            if recipe.ablated_share > 0 and step % recipe.refresh == 0:
                adversary.read()
            batch = next(harmful), next(harmless)
            rows = self._drawn(adversary, batch[0]) if is_ablated else None
            with torch.enable_grad(), without(self.model, rows):
                refusal, first, kl = self.losses(*batch)
                total = refusal + recipe.first_weight * first + recipe.kl_weight * kl
                if not bool(torch.isfinite(total)):
                    raise MeasurementError(
                        f"the loss of step {step + 1} is not finite. Lower recipe.learning_rate, "
                        "or load the model with --dtype float32."
                    )
                total.backward()
            nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            optimiser.step()
            optimiser.zero_grad()
            found.append(Step(refusal.item(), first.item(), kl.item(), is_ablated))
        return _facts(found, adversary.readings)

    def losses(
        self, harmful: Sequence[Lesson], harmless: Sequence[Lesson]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the mean cross-entropy of refusals, that of their first tokens, and the mean KL.

        The KL is that on harmless answers; all are in nats.
        """
        states = answer_states(self.model, [*harmful, *harmless])
        kl = list[Tensor]()
        for row, hidden in zip(harmless, states[len(harmful) :], strict=True):
            assert row.base is not None
            with torch.no_grad():
                log_p = self.head.log_probabilities(row.base)
            log_q = self.head.log_probabilities(hidden)
            kl.append((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())
        return *self._refusal_losses(harmful, states[: len(harmful)]), torch.stack(kl).mean()

    def _refusal_losses(
        self, harmful: Sequence[Lesson], states: Sequence[Float[Tensor, "token d_model"]]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        means, firsts = list[Tensor](), list[Tensor]()
        for row, hidden in zip(harmful, states, strict=True):
            log_q = self.head.log_probabilities(hidden)
            target = torch.tensor(row.answer, device=log_q.device)[:, None]
            each = -log_q.gather(1, target)[:, 0]
            means.append(each.mean())
            firsts.append(each[0])
        return torch.stack(means).mean(), torch.stack(firsts).mean()

    def _drawn(
        self, adversary: Adversary, harmful: Sequence[Lesson]
    ) -> Float64[Tensor, "rank d_model"]:
        """Return the draw without which these refusals are least likely to begin."""

        def first_loss(rows: Float64[Tensor, "rank d_model"]) -> float:
            with without(self.model, rows):
                states = answer_states(self.model, harmful, gradients=False)
                return self._refusal_losses(harmful, states)[1].item()

        return hardest([adversary.draw() for _ in range(self.recipe.tries)], first_loss)


def hardest(
    draws: Sequence[Float64[Tensor, "rank d_model"]],
    loss: Callable[[Float64[Tensor, "rank d_model"]], float],
) -> Float64[Tensor, "rank d_model"]:
    """Return the draw of largest ``loss``; an only one is not measured."""
    if len(draws) == 1:
        return draws[0]
    with torch.no_grad():
        losses = [loss(rows) for rows in draws]
    return draws[losses.index(max(losses))]


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


def _once(
    laboratory: Laboratory, trainer: _Trainer, adversary: Adversary, settings: HardenSettings
) -> Training:
    """Train, or take what was learned before from the store."""
    key = content_key(
        "hardening",
        **laboratory.identity,
        prompts=laboratory.splits.fit.sha256,
        recipe=settings.recipe.model_dump(mode="json"),
        positions=settings.probe.positions,
        tokens=settings.verify.max_new_tokens,
        judge=settings.verify.judge.model_dump(mode="json"),
        seed=settings.seed,
        training=hardening_code(),
    )

    def compute() -> tuple[Training, Mapping[str, Tensor]]:
        return trainer.run(adversary), trainer.update.tensors()

    def save(value: tuple[Training, Mapping[str, Tensor]], folder: Path) -> None:
        facts, tensors = value
        write_json(folder / FACTS, asdict(facts))
        save_file({name: each.contiguous() for name, each in tensors.items()}, folder / TENSORS)

    def load(folder: Path) -> tuple[Training, Mapping[str, Tensor]]:
        return Training(**read_json(folder / FACTS)), load_file(folder / TENSORS)

    (facts, tensors), is_cached = laboratory.store.cached(key, compute, save, load)
    if is_cached:
        emit(Note("this training was done before and is taken from the cache."))
        trainer.update.load(tensors)
    return facts


def _facts(steps: Sequence[Step], readings: int) -> Training:
    last = steps[-max(1, len(steps) // 4) :]
    plain, ablated = ([s for s in last if s.is_ablated == is_out] for is_out in (False, True))
    every = plain or ablated
    return Training(
        steps=len(steps),
        ablated_steps=sum(step.is_ablated for step in steps),
        readings=readings,
        refusal_loss=fmean(step.refusal for step in every),
        first_loss=fmean(step.first for step in every),
        ablated_loss=fmean(step.refusal for step in ablated) if ablated else None,
        ablated_first=fmean(step.first for step in ablated) if ablated else None,
        kl=fmean(step.kl for step in last),
    )
