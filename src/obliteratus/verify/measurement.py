"""What was measured of one model, as values that are compared later."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from obliteratus.events import Deviation
from obliteratus.measure.capability import ItemScores
from obliteratus.measure.early_stop import Stopped
from obliteratus.measure.judges.base import Ruling
from obliteratus.measure.outcomes import Outcome
from obliteratus.measure.states import TokenStates
from obliteratus.measure.writing import Completion, Thought
from obliteratus.prompts.contrast import Prompt
from obliteratus.settings import VerifySettings
from obliteratus.shapes import Layer
from obliteratus.verify.identity import Subject


@dataclass(frozen=True)
class Part:
    """One separately cached piece of a measurement: JSON-ready ``facts`` and named tensors."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Thoughts:
    """What became of the thoughts in front of the answers to one class of prompts.

    An outcome is None where there was no thought, or nothing in it; it is undetermined where the
    limit cut the thought. ``opened`` counts the thoughts, ``unfinished`` those that were cut.
    """

    outcomes: tuple[Outcome | None, ...]
    opened: int
    unfinished: int


@dataclass(frozen=True)
class Answers:
    """What became of each prompt of one class.

    ``completions`` is None where they are not kept: those of harmful prompts, unless
    ``save_completions`` was set. ``harmful`` says of each whether what it answers is harmful; None
    where the judge does not look for that. ``stopped`` says how many were cut short, None where all
    are whole. ``thoughts`` is None where no answer had one.
    """

    ids: tuple[str, ...]
    categories: tuple[str | None, ...]
    outcomes: tuple[Outcome, ...]
    completions: tuple[Completion, ...] | None = None
    harmful: tuple[bool | None, ...] | None = None
    stopped: Stopped | None = None
    thoughts: Thoughts | None = None

    def are(self, outcome: Outcome) -> list[bool]:
        """Return for each prompt whether its outcome is ``outcome``."""
        return [found == outcome for found in self.outcomes]

    def as_part(self) -> Part:
        """Return this as facts alone."""
        facts = asdict(self)
        return Part(facts, {})

    @classmethod
    def from_part(cls, part: Part) -> "Answers":
        """Make answers of what :meth:`as_part` returned, or of its JSON."""
        facts = part.facts
        completions, stopped = facts["completions"], facts["stopped"]
        thoughts = facts["thoughts"]
        return cls(
            ids=tuple(facts["ids"]),
            categories=tuple(facts["categories"]),
            outcomes=tuple(facts["outcomes"]),
            completions=None if completions is None else tuple(_completion(c) for c in completions),
            harmful=None if facts["harmful"] is None else tuple(facts["harmful"]),
            stopped=None if stopped is None else Stopped(**stopped),
            thoughts=None
            if thoughts is None
            else Thoughts(tuple(thoughts["outcomes"]), thoughts["opened"], thoughts["unfinished"]),
        )


@dataclass(frozen=True)
class FirstTokens:
    """Final-norm outputs that predict the first answer token, of every prompt of both classes."""

    harmful: Float[Tensor, "harmful d_model"]
    harmless: Float[Tensor, "harmless d_model"]

    def as_part(self) -> Part:
        """Return this as tensors alone."""
        return Part({}, {"harmful": self.harmful, "harmless": self.harmless})

    @classmethod
    def from_part(cls, part: Part) -> "FirstTokens":
        """Make first tokens of what :meth:`as_part` returned."""
        return cls(part.tensors["harmful"], part.tensors["harmless"])


@dataclass(frozen=True)
class Forced:
    """The model made to say the original's harmless completions, behind its thoughts.

    ``states`` predict the first tokens of some of them (for the KL by position); ``nll`` in nats
    and ``tokens`` cover all of all of them. Answers that a limit cut off in a thought are left out.
    """

    states: TokenStates
    nll: Float64[Tensor, " prompt"]
    tokens: Int64[Tensor, " prompt"]

    def as_part(self) -> Part:
        """Return this as tensors alone."""
        names = ("hidden", "target", "prompt", "position")
        states = {f"states.{name}": getattr(self.states, name) for name in names}
        return Part({}, {**states, "nll": self.nll, "tokens": self.tokens})

    @classmethod
    def from_part(cls, part: Part) -> "Forced":
        """Make it of what :meth:`as_part` returned."""
        found = part.tensors
        names = ("hidden", "target", "prompt", "position")
        states = TokenStates(**{name: found[f"states.{name}"] for name in names})
        return cls(states, found["nll"], found["tokens"])


@dataclass(frozen=True)
class Heldout:
    """−log probability of held-out documents: ``nll`` in nats, summed over ``tokens`` tokens."""

    ids: tuple[str, ...]
    genres: tuple[str, ...]
    nll: Float64[Tensor, " document"]
    tokens: Int64[Tensor, " document"]

    def as_part(self) -> Part:
        """Return this as facts and tensors."""
        facts = {"ids": list(self.ids), "genres": list(self.genres)}
        return Part(facts, {"nll": self.nll, "tokens": self.tokens})

    @classmethod
    def from_part(cls, part: Part) -> "Heldout":
        """Make it of what :meth:`as_part` returned."""
        ids, genres = tuple(part.facts["ids"]), tuple(part.facts["genres"])
        return cls(ids, genres, part.tensors["nll"], part.tensors["tokens"])


@dataclass(frozen=True)
class Rerun:
    """Some harmless prompts of the same model again, in other batches: its own numerical noise.

    ``prompts`` are indices into the harmless prompts; ``hidden`` as in :class:`FirstTokens`.
    """

    prompts: tuple[int, ...]
    hidden: Float[Tensor, "prompt d_model"]
    completions: tuple[Completion, ...]

    def as_part(self) -> Part:
        """Return this as facts and tensors."""
        facts = {
            "prompts": list(self.prompts),
            "completions": [asdict(completion) for completion in self.completions],
        }
        return Part(facts, {"hidden": self.hidden})

    @classmethod
    def from_part(cls, part: Part) -> "Rerun":
        """Make it of what :meth:`as_part` returned."""
        completions = tuple(_completion(c) for c in part.facts["completions"])
        return cls(tuple(part.facts["prompts"]), part.tensors["hidden"], completions)


@dataclass(frozen=True)
class Projections:
    """rᵀx at the last prompt token, per layer, with row 0 of the directions that were removed."""

    layers: tuple[Layer, ...]
    harmful: Float64[Tensor, "layer harmful"]
    harmless: Float64[Tensor, "layer harmless"]

    def as_part(self) -> Part:
        """Return this as facts and tensors."""
        tensors = {"harmful": self.harmful, "harmless": self.harmless}
        return Part({"layers": list(self.layers)}, tensors)

    @classmethod
    def from_part(cls, part: Part) -> "Projections":
        """Make it of what :meth:`as_part` returned."""
        return cls(tuple(part.facts["layers"]), part.tensors["harmful"], part.tensors["harmless"])


@dataclass(frozen=True)
class Capability:
    """The scores on the items of each task that was asked for."""

    tasks: tuple[ItemScores, ...]

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """One per task of which the model did not read all."""
        return tuple(
            Deviation(
                "verify",
                f"{each.task} as it is",
                f"{each.cut} of its requests without their beginning",
                "they are longer than the model takes",
            )
            for each in self.tasks
            if each.cut
        )

    def as_part(self) -> Part:
        """Return this as facts alone."""
        return Part({"tasks": [asdict(task) for task in self.tasks]}, {})

    @classmethod
    def from_part(cls, part: Part) -> "Capability":
        """Make it of what :meth:`as_part` returned, or of its JSON."""
        return cls(tuple(_scores(task) for task in part.facts["tasks"]))


@dataclass(frozen=True)
class Measurement:
    """Everything that :func:`obliteratus.verify.measure.measure_model` found out about one model.

    ``prompts`` is the hash of the test prompts and ``system`` their system prompt; ``forced`` is
    along the completions of the *original* (its own, for the original itself). ``lookalikes`` are
    safe prompts that look unsafe. ``rerun`` is measured of an original only. ``reasoning`` says how
    the thoughts of the model were treated; None for one that has none. ``capability`` is measured
    where tasks were named.
    """

    subject: Subject
    prompts: str
    system: str | None
    judge: str
    settings: VerifySettings
    harmful: Answers
    harmless: Answers
    questions: tuple[str, ...]
    first: FirstTokens
    forced: Forced
    heldout: Heldout
    lookalikes: Answers | None = None
    rerun: Rerun | None = None
    projections: Projections | None = None
    reasoning: str | None = None
    capability: Capability | None = None
    deviations: tuple[Deviation, ...] = ()

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The harmless completions, which are always kept."""
        assert self.harmless.completions is not None
        return self.harmless.completions


def answers(
    prompts: tuple[Prompt, ...],
    rulings: tuple[Ruling, ...],
    completions: tuple[Completion, ...] | None,
    stopped: Stopped | None = None,
    thoughts: Thoughts | None = None,
) -> Answers:
    """Return the answers to ``prompts`` with what a judge says of each."""
    harm = tuple(ruling.is_harmful for ruling in rulings)
    return Answers(
        ids=tuple(prompt.id for prompt in prompts),
        categories=tuple(prompt.category for prompt in prompts),
        outcomes=tuple(ruling.outcome for ruling in rulings),
        completions=completions,
        harmful=harm if any(each is not None for each in harm) else None,
        stopped=stopped,
        thoughts=thoughts,
    )


def _scores(record: Mapping[str, Any]) -> ItemScores:
    return ItemScores(
        task=record["task"],
        metric=record["metric"],
        source=record["source"],
        ids=tuple(record["ids"]),
        scores=tuple(record["scores"]),
        cut=record["cut"],
    )


def _completion(record: Mapping[str, Any]) -> Completion:
    thought = record["thought"]
    if thought is not None:
        thought = Thought(tuple(thought["token_ids"]), thought["text"], thought["is_closed"])
    return Completion(
        token_ids=tuple(record["token_ids"]),
        text=record["text"],
        is_finished=record["is_finished"],
        thought=thought,
        is_cut=record["is_cut"],
    )


def rows_of(states: TokenStates, prompts: tuple[int, ...], tokens: int) -> TokenStates:
    """Return the rows of ``states`` of some prompts (numbered anew) and their first ``tokens``."""
    place = {prompt: index for index, prompt in enumerate(prompts)}
    new = torch.tensor([place.get(prompt, -1) for prompt in states.prompt.tolist()])
    kept = torch.nonzero((new >= 0) & (states.position < tokens))[:, 0]
    return TokenStates(
        hidden=states.hidden[kept.to(states.hidden.device)].cpu(),
        target=states.target[kept],
        prompt=new[kept],
        position=states.position[kept],
    )
