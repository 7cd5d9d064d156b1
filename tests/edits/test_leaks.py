"""A leak ends the run unless it is allowed, and an allowed leak is told."""

import pytest
import torch

from obliteratus.edits.leaks import prove_edit
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import LeakError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.settings import EditSettings, Strengths
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model

PROMPTS = ((3, 17, 80, 200, 9), (1, 2, 5))
BROKEN = "model.layers.1.mlp.down_proj.weight"


def leaking() -> tuple[LoadedModel, EditPlan]:
    """Return an edited model in which one matrix was put back."""
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    excise(model, planned)
    with torch.no_grad():
        original = tiny_model("llama").module.get_parameter(BROKEN)
        model.module.get_parameter(BROKEN).copy_(original)
    return model, planned


def test_a_clean_edit_is_proved_without_deviations() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    receipt = excise(model, planned)
    proof, leaks = prove_edit(model, planned, PROMPTS, receipt=receipt)
    assert proof is not None
    assert proof.worst < 1e-12
    assert leaks == ()


def test_a_leak_ends_the_run_and_names_the_flag() -> None:
    model, planned = leaking()
    with pytest.raises(LeakError, match=r"down_proj\.weight still writes .* pass --allow-leak"):
        prove_edit(model, planned, PROMPTS)


def test_an_allowed_leak_is_a_deviation_for_every_proof_that_fails() -> None:
    model, planned = leaking()
    proof, leaks = prove_edit(model, planned, PROMPTS, allow_leak=True)
    assert proof is not None
    assert proof.worst > 1e-3
    assert len(leaks) == 2
    assert BROKEN in leaks[0].done
    assert "of the stream is left along the removed directions at layer" in leaks[1].done
    assert all("--allow-leak" not in leak.done for leak in leaks)
    assert {leak.reason for leak in leaks} == {"edit.allow_leak=true (--allow-leak)"}


def test_a_weaker_edit_removes_nothing_that_tokens_could_prove() -> None:
    model = tiny_model("llama")
    planned = plan(model, random_directions(model), EditSettings(strength=0.5))
    receipt = excise(model, planned)
    assert prove_edit(model, planned, PROMPTS, receipt=receipt) == (None, ())


def test_what_was_removed_is_proved_beside_what_was_left() -> None:
    model = tiny_model("llama")
    settings = EditSettings(strengths=Strengths(layers={"0": 0, "2": 0.5}))
    planned = plan(model, random_directions(model), settings)
    receipt = excise(model, planned)
    proof, _ = prove_edit(model, planned, PROMPTS, receipt=receipt)
    assert proof is not None
    assert proof.measured == "writes"
    assert len(proof.writers) == 3
    name = "model.layers.1.mlp.down_proj.weight"
    with torch.no_grad():
        model.module.get_parameter(name).copy_(tiny_model("llama").module.get_parameter(name))
    with pytest.raises(LeakError, match="still writes"):
        prove_edit(model, planned, PROMPTS)
