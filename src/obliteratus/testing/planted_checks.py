"""Measurements of planted transformers, and whether they do what their construction predicts."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.edits.controls import matched_random
from obliteratus.edits.planner import plan
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import log_odds
from obliteratus.models.chat import encode
from obliteratus.operator.hooks import adding, edited
from obliteratus.operator.steering import steering
from obliteratus.probe.forward import last_hidden
from obliteratus.shapes import Layer
from obliteratus.testing.planted_architecture import HEAD_DIM
from obliteratus.testing.planted_circuit import Role
from obliteratus.testing.planted_prompts import planted_items
from obliteratus.testing.planted_refusal import SWING
from obliteratus.testing.planted_transformer import PlantedTransformer, features
from obliteratus.testing.planted_vocabulary import REFUSES

TOLERANCE = 1.5
"""Largest difference, in log-odds, of the mean measured and the mean predicted: an eighth of what r
does. It is noise of words and unused weights, which predictions leave out."""
RARE = 0.05  # share of prompts that may do the other thing, at the noise of the variants
AMPLIFIED = -0.25  # strength of a removal that amplifies
CONTROL_SHARE = 1 / 2  # of r's swing that removing a random direction of equal energy may undo
CONTROLS = 2


@dataclass(frozen=True)
class State:
    """The model under an intervention, and what to tell :meth:`PlantedTransformer.predicted`."""

    name: str
    context: AbstractContextManager[object]
    removed: Float64[Tensor, "rank d_model"] | None = None
    strength: float = 1.0
    added: Mapping[Layer, Float64[Tensor, " d_model"]] | None = None


def everywhere(
    plant: PlantedTransformer, rows: Float64[Tensor, "rank d_model"]
) -> dict[Layer, Float64[Tensor, "rank d_model"]]:
    """Return ``rows`` as the basis of every layer and of the embedding."""
    layers: tuple[Layer, ...] = ("embedding", *range(plant.model.anatomy.n_layers))
    return dict.fromkeys(layers, rows)


def removing(
    plant: PlantedTransformer, rows: Float64[Tensor, "rank d_model"], *, strength: float = 1.0
) -> AbstractContextManager[object]:
    """Return a context in which orthonormal ``rows`` are taken out of every write."""
    basis = everywhere(plant, rows)
    return steering(plant.model, basis, kind="write_projection", strength=strength)


def measured(
    plant: PlantedTransformer, prompts: Sequence[str], *, token: str = REFUSES
) -> Float64[Tensor, " prompt"]:
    """Return each prompt's log-odds of ``token`` as the answer's first, from the model."""
    return log_odds(_first(plant, prompts), (plant.token(token),))


def predictions(
    plant: PlantedTransformer, prompts: Sequence[str], state: State, *, token: str = REFUSES
) -> Float64[Tensor, " prompt"]:
    """Return what the construction predicts for :func:`measured` in ``state``."""
    known: dict[tuple[str, ...], float] = {}  # all that matters of a prompt is what it carries
    for prompt in prompts:
        if features(prompt) not in known:
            known[features(prompt)] = plant.predicted(
                prompt,
                token=token,
                removed=state.removed,
                strength=state.strength,
                added=state.added,
            )
    return torch.tensor([known[features(prompt)] for prompt in prompts], dtype=torch.float64)


def untouched() -> State:
    """Return the model as it is."""
    return State("untouched", contextlib.nullcontext())


def removed(
    plant: PlantedTransformer, rows: Float64[Tensor, "rank d_model"], *, strength: float = 1.0
) -> State:
    """Return the model with ``rows`` out of every write."""
    context = removing(plant, rows, strength=strength)
    return State(f"removed at {strength:g}", context, removed=rows, strength=strength)


def added(plant: PlantedTransformer, vector: Float64[Tensor, " d_model"]) -> State:
    """Return the model with ``vector`` added where refusal is written."""
    layer = plant.truth.write_layer
    return State("added", adding(plant.model, layer, vector), added={layer: vector})


def silenced(plant: PlantedTransformer, role: Role) -> PlantedTransformer:
    """Return a copy in which the MLP columns of ``role`` write nothing."""
    module = copy.deepcopy(plant.model.module)
    for layer, column in plant.truth.columns[role]:
        path = f"model.layers.{layer}.mlp"
        name = "experts.down_proj" if plant.truth.design.architecture == "mixtral" else None
        module.get_parameter(f"{path}.{name or 'down_proj.weight'}").data[..., column] = 0
    return replace(plant, model=replace(plant.model, module=module))


def without_head(plant: PlantedTransformer, layer: int, head: int) -> PlantedTransformer:
    """Return a copy in which attention ``head`` of ``layer`` writes nothing."""
    module = copy.deepcopy(plant.model.module)
    weight = module.get_parameter(f"model.layers.{layer}.self_attn.o_proj.weight")
    weight.data[:, head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
    return replace(plant, model=replace(plant.model, module=module))


def controls(plant: PlantedTransformer, *, count: int = CONTROLS) -> list[State]:
    """Return the model without random directions whose removal costs as much as that of r."""
    basis = everywhere(plant, plant.truth.basis)
    directions = Directions(basis, dict.fromkeys(basis, 1.0), method="planted")
    planned = plan(plant.model, directions)
    matched = [matched_random(planned, plant.model, seed=seed) for seed in range(count)]
    return [State(f"control {i}", edited(plant.model, each)) for i, each in enumerate(matched)]


def failures(plant: PlantedTransformer, *, n: int = 32, seed: int = 1000) -> Iterator[str]:
    """Yield what ``plant`` does otherwise than its construction says; nothing when all is right.

    On ``n`` pairs of its prompts: it refuses at least 95 % of those that its circuit refuses and at
    most 5 % of the others; the mean log-odds of both kinds are as predicted, within
    :data:`TOLERANCE`, for the model as it is, with r removed and amplified, and with r (of each
    category) added to the prompts that it answers; and removing a random direction of equal energy
    undoes less than half of what r does. On capability questions, the right answers are as likely
    as predicted with and without r.
    """
    contrast = plant.prompts(n, seed=seed)
    texts = [prompt.text for prompt in (*contrast.harmful, *contrast.harmless)]
    is_refused = predictions(plant, texts, untouched()) > 0
    before = measured(plant, texts)
    yield from _rate_failures(before > 0, is_refused)
    basis, truth = plant.truth.basis, plant.truth
    states = [
        untouched(),
        removed(plant, basis),
        removed(plant, basis, strength=AMPLIFIED),
        *(added(plant, truth.length * row) for row in truth.refusal),
    ]
    for state in states:
        with state.context:
            found = measured(plant, texts)
        error = found - predictions(plant, texts, state)
        kinds = {"refused": is_refused, "answered": ~is_refused}
        for kind, rows in kinds.items():
            is_twice = kind == "refused" and state.added is not None  # refused already
            if rows.any() and not is_twice and not abs(float(error[rows].mean())) <= TOLERANCE:
                yield (
                    f"{state.name}: the mean log-odds of {kind} prompts are "
                    f"{float(error[rows].mean()):+.2f} from what is predicted"
                )
    for state in controls(plant):
        with state.context:
            change = (measured(plant, texts) - before)[is_refused].mean()
        if not float(change) >= -CONTROL_SHARE * SWING:
            yield f"{state.name} moves the log-odds of refused prompts by {float(change):+.2f}"
    yield from _capability_failures(plant, n=n, seed=seed)


def capability(
    plant: PlantedTransformer, state: State, *, n: int = 64, seed: int = 1000
) -> tuple[Float64[Tensor, " item"], Float64[Tensor, " item"]]:
    """Return the log-odds of the right answers of ``n`` questions, measured and predicted."""
    items = planted_items(n, seed=seed)
    found, expected = torch.empty(2, n, dtype=torch.float64)
    with state.context:
        first = _first(plant, [item.prompt.text for item in items])
    for answer in dict.fromkeys(item.answer for item in items):
        rows = [row for row, item in enumerate(items) if item.answer == answer]
        texts = [items[row].prompt.text for row in rows]
        found[rows] = log_odds(first[rows], (plant.token(answer),))
        expected[rows] = predictions(plant, texts, state, token=answer)
    return found, expected


def _first(plant: PlantedTransformer, prompts: Sequence[str]) -> Float[Tensor, "prompt vocab"]:
    """Return the log-probabilities of the first token of each answer."""
    hidden = last_hidden(plant.model, encode(plant.model, prompts), task="planted")
    return head_of(plant.model).log_probabilities(hidden)


def _rate_failures(refuses: Tensor, is_refused: Tensor) -> Iterator[str]:
    if not float(refuses[is_refused].double().mean()) >= 1 - RARE:
        share = float(refuses[is_refused].double().mean())
        yield f"only {share:.0%} of the prompts that its circuit refuses are refused"
    if not float(refuses[~is_refused].double().mean()) <= RARE:
        share = float(refuses[~is_refused].double().mean())
        yield f"{share:.0%} of the prompts that its circuit answers are refused"


def _capability_failures(plant: PlantedTransformer, *, n: int, seed: int) -> Iterator[str]:
    for state in (untouched(), removed(plant, plant.truth.basis)):
        found, expected = capability(plant, state, n=n, seed=seed)
        error = float((found - expected).mean())
        if not abs(error) <= TOLERANCE:
            yield f"{state.name}: capability log-odds are {error:+.2f} from what is predicted"
