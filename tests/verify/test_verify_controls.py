"""The nulls: strength 0 changes no bit, and a real edit does what a random one does not."""

from pathlib import Path

import pytest
import torch

from obliteratus.edits.targets import head_site
from obliteratus.errors import MeasurementError
from obliteratus.measure.head import head_of
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.removal import everywhere, removal, site_edit
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.store import Store
from obliteratus.testing.keystone import random_directions
from obliteratus.verify import effects
from obliteratus.verify.controls import measure_controls
from obliteratus.verify.effects import edited_head

TOKENS = RefusalTokens((40, 41, 42))


def plan_along(model: LoadedModel, axis: int, *, strength: float = 1.0, norm: str = "none"):
    import dataclasses

    rows = torch.eye(16, dtype=torch.float64)[axis : axis + 1]
    edits = removal(model, everywhere(model, rows, embedding=False), strength=strength)
    return EditPlan(tuple(dataclasses.replace(edit, norm=norm) for edit in edits))


def test_strength_zero_is_the_original_bit_for_bit(model: LoadedModel, pairs: ContrastSet):
    found = measure_controls(model, plan_along(model, 3), pairs, tokens=TOKENS)
    row = found.rows[-1]
    assert (row.kind, row.is_bitwise) == ("identity", True)
    assert row.kl.interval == (0.0, 0.0)
    assert row.log_odds_change is not None
    assert row.log_odds_change.value == 0.0


def test_the_edit_is_measured_beside_each_control(model: LoadedModel, pairs: ContrastSet):
    random = [plan_along(model, axis) for axis in (5, 7)]
    found = measure_controls(
        model, plan_along(model, 3), pairs, random=random, permuted=random[:1], tokens=TOKENS
    )
    names = [row.name for row in found.rows]
    assert names == [
        "the edit",
        "random direction 1",
        "random direction 2",
        "permuted labels 1",
        "strength 0",
    ]
    assert all(row.kl.value > 0 for row in found.rows[:-1])
    assert found.rows[1].kl == found.rows[3].kl  # the same plan gives the same numbers
    assert len({row.kl.value for row in found.rows[:3]}) == 3
    assert found.deviations == ()


def test_a_weaker_edit_moves_less(model: LoadedModel, pairs: ContrastSet):
    strong, weak = (
        measure_controls(model, plan_along(model, 3, strength=s), pairs).rows[0].kl.value
        for s in (1.0, 0.1)
    )
    assert 0 < weak < strong


def test_hooks_are_gone_afterwards(model: LoadedModel, pairs: ContrastSet):
    measure_controls(model, plan_along(model, 3), pairs)
    assert not any(part._forward_hooks for part in model.module.modules())


def test_a_norm_that_hooks_cannot_keep_is_a_deviation(model: LoadedModel, pairs: ContrastSet):
    found = measure_controls(model, plan_along(model, 3, norm="column"), pairs)
    assert found.deviations[0].asked == "edit.norm=column"


def test_without_tokens_there_are_no_log_odds(model: LoadedModel, pairs: ContrastSet):
    rows = measure_controls(model, plan_along(model, 3), pairs).rows
    assert all(row.log_odds_change is None for row in rows)


def test_effects_are_measured_once(
    model: LoadedModel, pairs: ContrastSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    planned = plan_along(model, 3)
    first = measure_controls(model, planned, pairs, tokens=TOKENS, store=Store(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(effects, "last_hidden", refuse)
        again = measure_controls(model, planned, pairs, tokens=TOKENS, store=Store(tmp_path))
        assert again == first
        with pytest.raises(AssertionError, match="measured again"):
            measure_controls(model, plan_along(model, 4), pairs, store=Store(tmp_path))


def test_a_set_without_harmless_prompts_is_refused(model: LoadedModel, pairs: ContrastSet):
    half = ContrastSet("half", pairs.harmful, (), is_paired=False)
    with pytest.raises(MeasurementError, match="both are needed"):
        measure_controls(model, plan_along(model, 3), half)


def test_an_edit_of_the_head_reaches_the_logits_of_its_controls(
    model: LoadedModel, pairs: ContrastSet
) -> None:
    """Hidden states do not show it, so the head itself is edited for the measurement."""
    head = head_site(model.anatomy)
    rows = random_directions(model, rank=3).basis[0]
    edit = site_edit(model, head, rows, torch.ones(3, dtype=torch.float64))
    found = measure_controls(model, EditPlan((edit,)), pairs)
    assert found.rows[0].kl.value > 1e-3
    assert found.rows[-1].is_bitwise
    changed = edited_head(head_of(model), EditPlan((edit,)))
    assert float((changed.weight.double() @ rows.T).abs().max()) < 1e-6
