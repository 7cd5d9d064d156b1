"""Of every architecture: a strength for each row is the edit of the weights, or it is refused."""

import pytest

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import UnsupportedArchitectureError
from obliteratus.operator.hooks import edited
from obliteratus.operator.shares import Shares
from obliteratus.studies.candidates import inexact
from obliteratus.testing.keystone import (
    AGREEMENT,
    copied,
    exact_logits,
    random_directions,
    tokens_for,
)
from obliteratus.testing.tiny import MODEL_TYPES, tiny_declaration, tiny_model

FIRST_OF_FAMILY = tuple(
    {id(tiny_declaration(name)): name for name in reversed(MODEL_TYPES)}.values()
)
SHARES = (-1.0, 0.3, 2.0)
ROWS = (1, 0, 2, 0, 1, 2)
ALONE = frozenset({"opt", "llama4_text", "llama4"})
"""Some module of these is given the tokens of all prompts as one list, without rows."""


@pytest.mark.parametrize("model_type", FIRST_OF_FAMILY)
def test_rows_are_edits_by_themselves(model_type):
    model = tiny_model(model_type)
    if model.anatomy.hooks_only is not None:  # no weights to edit, so there is no sweep
        with pytest.raises(UnsupportedArchitectureError):
            plan(model, random_directions(model))
        return
    planned = plan(model, random_directions(model))
    reason = inexact(model, planned)
    assert (reason is not None) == (model_type in ALONE), reason
    if reason is not None:
        assert "one strength after the other" in reason
        return
    tokens = tokens_for(model, n_prompts=len(ROWS))
    gain = Shares(SHARES)
    gain.turn(ROWS)
    with edited(model, planned, gain=gain):
        together = exact_logits(model, tokens)
    for number, share in enumerate(SHARES):
        other = copied(model)
        excise(other, planned.scaled(share))
        mine = [row for row, each in enumerate(ROWS) if each == number]
        alone = exact_logits(other, tokens[mine])
        assert float((together[mine] - alone).abs().max()) < AGREEMENT


def test_a_row_of_another_strength_differs():
    model = tiny_model("llama")
    planned = plan(model, random_directions(model))
    tokens = tokens_for(model, n_prompts=1).repeat(2, 1)
    gain = Shares(SHARES)
    gain.turn((1, 2))
    with edited(model, planned, gain=gain):
        one, other = exact_logits(model, tokens)
    assert float((one - other).abs().max()) > 0.1
