"""What directions that others share do in a model at hand: added, removed, beside its own.

They are taken as they are, so the model has to have the shape of theirs, and they mean something in
it only where both come from one base. That is not known of two models: one that acts beyond random
directions is evidence of it, one that does not is none against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.intervening import random_rows, selected
from obliteratus.analysis.transferred import RANDOM, act, transfer_estimates
from obliteratus.community.universality import Given
from obliteratus.errors import MeasurementError, UsageError
from obliteratus.models.summon import summon
from obliteratus.pipeline.analyses import Analyses
from obliteratus.pipeline.behaviour import behaviour_of
from obliteratus.pipeline.journal import Journal
from obliteratus.pipeline.stages import Laboratory
from obliteratus.probe.files import layer_name
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import RunSettings
from obliteratus.shapes import Layer
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import Store

STREAM = 0x73686172  # added to the seed, so that no other use of it has drawn the same vectors


@dataclass(frozen=True)
class ActsHere:
    """What one shared direction does in the model at hand.

    Attributes:
        given: The run that it is from.
        layer: Where it was added.
        is_same_model: Whether it was found in this very model.
        estimates: Changes of refusal log-odds by ``added`` and ``removed``, each with the null of
            random directions; ``_own`` is what the model's own direction does, ``_share`` the
            ratio.
    """

    given: Given
    layer: Layer
    is_same_model: bool
    estimates: Mapping[str, Estimate]


def act_here(
    model: str, given: Sequence[Given], settings: RunSettings, *, store: Store | None = None
) -> tuple[ActsHere, ...]:
    """Measure in ``model`` what the first direction of each of ``given`` does.

    Raises:
        UsageError: none of them is of a model of this shape.
        MeasurementError: the model has no first tokens that show the behaviour.
        ObliteratusError: the model cannot be had.
    """
    store = store or Store()
    behaviour = behaviour_of(settings)
    splits = split(contrast_set(settings.prompts, behaviour.contrast_set))
    journal = Journal(store)
    with journal.stage("summon", f"load {model}") as note:
        loaded = summon(model, settings.model, store=store)
        anatomy = loaded.anatomy
        shape = (anatomy.model_type, anatomy.n_layers, anatomy.d_model)
        note.text = _words(shape)
    fitting = [each for each in given if each.shape == shape]
    if not fitting:
        others = ", ".join(sorted({_words(each.shape) for each in given}))
        raise UsageError(
            f"{model} is of {_words(shape)}, and the shared directions are of {others}. "
            "Coordinates of other shapes mean nothing in it."
        )
    bench = Analyses(Laboratory(loaded, splits, settings, store), journal).bench
    with journal.stage("analyze", f"try {len(fitting)} shared directions") as note:
        found = tuple(_acts(bench, each) for each in fitting)
        note.text = f"{len(found)} directions beside {RANDOM} random ones each"
    return found


def _acts(bench: Bench, given: Given) -> ActsHere:
    layer = _layer(bench, given)
    seen = bench.activations
    position = bench.directions.position
    row = seen.positions.index(max(seen.positions) if position is None else position)
    own = seen.difference(layer)[row]
    means: dict[Layer, Tensor] = {
        place: each.mean[row] for place, each in seen.harmless.moments.items()
    }
    acted = act(
        bench,
        bench.tokens,
        _rows(given.basis[layer_name(layer)][0], own, bench.seed),
        layer=layer,
        length=float(own.norm()),
        means=means,
    )
    is_same = bench.model.source.fingerprint == given.source
    estimates = transfer_estimates(acted, seed=bench.seed, reliable=True)
    return ActsHere(given, layer, is_same, estimates)


def _layer(bench: Bench, given: Given) -> Layer:
    """Return where the direction was read, or else where the model's own was."""
    facts = given.contribution.directions
    layer: Layer | None = None if facts is None else facts.source_layer
    if layer is None or layer_name(layer) not in given.basis:
        layer, _ = selected(bench.directions)
    if layer_name(layer) not in given.basis:
        raise MeasurementError(f"{given.label} shares no direction of {layer_name(layer)}.")
    return layer


def _rows(
    shared: Tensor, own: Float64[Tensor, " d_model"], seed: int
) -> list[Float64[Tensor, " d_model"]]:
    """Return unit vectors: the shared one, the model's own, and random ones orthogonal to it."""
    first = shared.to(torch.float64) / shared.to(torch.float64).norm()
    generator = torch.Generator().manual_seed(STREAM + seed)
    drawn = [random_rows(1, len(first), generator)[0] for _ in range(RANDOM)]
    others = [each - (first @ each) * first for each in drawn]
    return [first, own / own.norm(), *(each / each.norm() for each in others)]


def _words(shape: tuple[str, int, int]) -> str:
    return f"{shape[0]} with {shape[1]} layers of width {shape[2]}"
