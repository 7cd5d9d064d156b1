"""A real aligned model: the shared prefix is exact, and one direction carries its refusal."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from obliteratus.directions.samples import EXTRACTORS, samples_at
from obliteratus.directions.score import Scorer, spread
from obliteratus.edits.memory import excise
from obliteratus.edits.proof import prove_stream, prove_tensors
from obliteratus.measure.log_odds import calibrate
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block_output
from obliteratus.models.summon import summon
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.removal import everywhere, removal
from obliteratus.probe.activations import Activations
from obliteratus.probe.capture import probe
from obliteratus.probe.forward import last_hidden
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.split import split
from obliteratus.shapes import Layer

pytestmark = pytest.mark.real_model
LAYER = 16  # where the direction of this model is selected (docs/benchmarks.md)
PREFIX_ERROR = 1e-5  # of the stream's size: the order of float32 sums differs


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return summon("qwen2.5-coder-0.5b")


@pytest.fixture(scope="module")
def fit() -> ContrastSet:
    return part(split(refusal()).fit, 64)


def part(prompts: ContrastSet, count: int) -> ContrastSet:
    harmful, harmless = spread(prompts.harmful, count), spread(prompts.harmless, count)
    return replace(prompts, harmful=harmful, harmless=harmless)


@pytest.fixture(scope="module")
def activations(model: LoadedModel, fit: ContrastSet) -> Activations:
    return probe(model, fit)


@pytest.fixture(scope="module")
def bases(model: LoadedModel, activations: Activations) -> dict[Layer, Tensor]:
    extract = EXTRACTORS["projected_difference_of_means"]
    return everywhere(model, extract(samples_at(activations, LAYER, -1), max_rank=1))


def test_sharing_the_prefix_changes_nothing(
    model: LoadedModel, fit: ContrastSet, activations: Activations
) -> None:
    encoded = encode(model, [prompt.text for prompt in fit.harmful[:3]])
    assert encoded.shared_prefix >= 20
    seen: list[Tensor] = []
    block = model.module.get_submodule(model.anatomy.blocks[LAYER])
    watch = block.register_forward_hook(lambda _m, _a, out: seen.append(block_output(out)[0, -1]))
    with watch, torch.no_grad():
        for ids in encoded.ids:
            model.module(input_ids=torch.tensor([list(ids)]))
    alone, shared = torch.stack(seen), activations.harmful.kept[LAYER][:3, 0]
    assert float((alone - shared).norm() / alone.norm()) < PREFIX_ERROR


def test_one_direction_carries_refusal(
    model: LoadedModel, fit: ContrastSet, bases: dict[Layer, Tensor]
) -> None:
    """Measured on test prompts: the direction was found on fit prompts alone."""
    sides = ([prompt.text for prompt in side] for side in (fit.harmful, fit.harmless))
    states = [last_hidden(model, encode(model, texts), task="calibrate") for texts in sides]
    tokens = calibrate(model, *states)
    scorer = Scorer(model, split(refusal()).test, tokens, prompts=24)
    after = scorer.effect(bases)
    assert np.mean(after.log_odds - scorer.original.log_odds) < -1
    assert np.mean(after.kl) < 0.1


def test_it_leaves_the_weights_and_the_stream(
    model: LoadedModel, fit: ContrastSet, bases: dict[Layer, Tensor]
) -> None:
    plan = EditPlan(removal(model, bases), unties_head=True)
    excise(model, plan)
    assert max(prove_tensors(model, plan).values()) < 1e-6
    ids = encode(model, [prompt.text for prompt in fit.harmful[:4]]).ids
    assert prove_stream(model, plan, ids).worst < 1e-6
