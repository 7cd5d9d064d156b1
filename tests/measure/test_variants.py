"""Answers of several variants of a model in one batch: each row stays with its own."""

import pytest
import torch

from obliteratus.measure.generation import generate
from obliteratus.models.chat import Encoded
from obliteratus.models.plumbing import hooked
from obliteratus.probe.variants import Variants
from obliteratus.testing.tiny import tiny_model

ROWS, LONG = 40, 10  # rows, and those of them that go on when the others have left


@pytest.mark.parametrize("shared_prefix", [0, 2])
def test_rows_keep_their_variant_when_others_leave(shared_prefix):
    model = tiny_model("llama")
    weight = model.module.get_submodule(model.anatomy.head).get_parameter("weight")
    said = weight.norm(dim=-1).topk(2).indices.tolist()  # no other logit is larger than their own
    now = [0]

    def write(_module, _args, output):
        rows = weight[[said[variant] for variant in now]]
        output.last_hidden_state = rows[:, None].expand_as(output.last_hidden_state)
        return output

    of = tuple(int(row >= ROWS // 2) for row in range(ROWS))
    variants = Variants(of, lambda rows: now.__setitem__(slice(None), list(rows)))
    ids = tuple((5, 6, 7 + row % 3) for row in range(ROWS))
    encoded = Encoded(ids, shared_prefix, post_instruction=0, has_template=False)
    backbone = model.module.get_submodule(model.anatomy.backbone)
    opened = {}
    with hooked([backbone.register_forward_hook(write)]):
        answers = generate(
            model,
            encoded,
            max_new_tokens=12,
            task="test",
            enough=lambda row, _tokens, _text: row < ROWS - LONG,
            opened=opened.__setitem__,
            variants=variants,
        )
    for row, answer in enumerate(answers):
        assert set(answer.token_ids) == {said[of[row]]}
        assert len(answer.token_ids) == (12 if row >= ROWS - LONG else 4)
        assert torch.equal(opened[row], weight[said[of[row]]])
