import pytest
import torch

from obliteratus.errors import MeasurementError
from obliteratus.measure.generation import Completion, generate
from obliteratus.measure.head import head_of
from obliteratus.measure.states import completion_hidden
from obliteratus.models.chat import encode
from obliteratus.testing.tiny import tiny_model

PROMPTS = ("Hi", "What is the time?", "A longer question, about nothing at all.")


def completion(*token_ids: int) -> Completion:
    return Completion(token_ids, "", is_finished=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_states_are_those_of_each_sequence_run_alone(family: str) -> None:
    model = tiny_model(family)
    encoded = encode(model, PROMPTS)
    completions = [completion(40, 41, 42), completion(50), completion(60, 61, 62, 63, 64)]
    states = completion_hidden(model, encoded, completions, task="t")
    assert states.prompt.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert states.position.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert states.target.tolist() == [40, 41, 42, 50, 60, 61, 62, 63, 64]
    backbone = model.module.get_submodule(model.anatomy.backbone)
    start = 0
    for ids, answer in zip(encoded.ids, completions, strict=True):
        whole = torch.tensor([ids + answer.token_ids])
        count = len(answer.token_ids)
        with torch.no_grad():
            expected = backbone(input_ids=whole).last_hidden_state[0, len(ids) - 1 : -1]
        found = states.hidden[start : start + count]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        start += count


def test_the_states_of_a_greedy_completion_predict_it() -> None:
    model = tiny_model("llama", seed=2)
    encoded = encode(model, PROMPTS)
    completions = generate(model, encoded, max_new_tokens=6, task="t")
    states = completion_hidden(model, encoded, completions, task="t")
    assert torch.equal(head_of(model).logits(states.hidden).argmax(-1), states.target)


def test_the_states_of_other_tokens_do_not_predict_them() -> None:
    model = tiny_model("llama", seed=2)
    encoded = encode(model, PROMPTS)
    states = completion_hidden(model, encoded, [completion(40, 41)] * 3, task="t")
    assert not torch.equal(head_of(model).logits(states.hidden).argmax(-1), states.target)


def test_max_tokens_keeps_the_first_ones() -> None:
    model = tiny_model("llama")
    encoded = encode(model, PROMPTS)
    completions = [completion(40, 41, 42), completion(50), completion(60, 61)]
    states = completion_hidden(model, encoded, completions, max_tokens=2, task="t")
    assert states.target.tolist() == [40, 41, 50, 60, 61]
    assert len(states) == 5


def test_a_missing_or_empty_completion_is_an_error() -> None:
    model = tiny_model("llama")
    encoded = encode(model, PROMPTS)
    with pytest.raises(MeasurementError, match="3 prompts and 2 completions"):
        completion_hidden(model, encoded, [completion(40)] * 2, task="t")
    with pytest.raises(MeasurementError, match="1 of 3 sequences"):
        completion_hidden(model, encoded, [completion(40), completion(), completion(4)], task="t")
