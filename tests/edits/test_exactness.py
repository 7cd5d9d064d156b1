"""What was edited took its strengths, and what is loaded again is what was edited."""

import dataclasses

import pytest
import torch

from obliteratus.edits.exactness import prove_receipt, prove_saved
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.proof import TOLERANCE
from obliteratus.edits.receipt import Receipt
from obliteratus.errors import LeakError
from obliteratus.models.loaded import LoadedModel
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model


def edited(
    model: LoadedModel, strength: float = 1.3, norm: str = "column", seed: int = 0
) -> Receipt:
    settings = EditSettings(strength=strength, norm=norm)
    return excise(model, plan(model, random_directions(model, rank=2, seed=seed), settings))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.3, -1.0])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_edits_of_any_strength_and_type_are_exact_to_rounding(
    model_type: str, strength: float, dtype: torch.dtype
) -> None:
    model = tiny_model(model_type, dtype=dtype)
    receipt = edited(model, strength)
    prove_receipt(model, receipt)
    prove_saved(model, [receipt])


def test_a_matrix_that_took_another_strength_is_named() -> None:
    model = tiny_model("llama")
    receipt = edited(model)
    bad = dataclasses.replace(receipt.records[3], error=1e-3)
    wrong = dataclasses.replace(receipt, records=(*receipt.records[:3], bad, *receipt.records[4:]))
    with pytest.raises(LeakError, match=f"{bad.name} is off by 1.0e-03"):
        prove_receipt(model, wrong)
    prove_receipt(model, wrong, allow_leak=True)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_one_number_that_was_not_saved_is_noticed(what: str) -> None:
    model = tiny_model("llama")
    receipt = edited(model)
    name = f"model.layers.0.mlp.down_proj.{what}"
    with torch.no_grad():
        model.module.get_parameter(name).view(-1)[5] += 1e-12
    with pytest.raises(LeakError, match=r"down_proj\.weight of the saved folder is not"):
        prove_saved(model, [receipt])


def test_after_several_passes_the_last_one_counts() -> None:
    model = tiny_model("llama")
    first = edited(model)
    second = edited(model, seed=1)
    prove_saved(model, [first, second])
    with pytest.raises(LeakError):
        prove_saved(model, [second, first])
