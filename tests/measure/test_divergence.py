import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from obliteratus.errors import MeasurementError
from obliteratus.measure.divergence import first_token_kl, kl_divergence, sequence_kl
from obliteratus.measure.generation import generate
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.states import TokenStates, completion_hidden
from obliteratus.models.chat import encode
from obliteratus.probe.forward import last_hidden
from obliteratus.testing.tiny import tiny_model

PROMPTS = ("Hi", "What is the time?", "A longer question, about nothing at all.")


def random_head(seed: int, *, vocab: int = 50, softcap: float | None = None) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = 3 * torch.randn(vocab, 8, generator=generator)
    return Head(weight, torch.randn(vocab, generator=generator), 0.7, softcap)


def random_hidden(seed: int, rows: int = 10) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def reference(p_logits: torch.Tensor, q_logits: torch.Tensor) -> np.ndarray:
    p, q = (torch.softmax(logits.double(), -1).numpy() for logits in (p_logits, q_logits))
    return rel_entr(p, q).sum(-1)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("rows", [1, 3, 128])
def test_kl_agrees_with_scipy(softcap: float | None, rows: int) -> None:
    before, after = random_hidden(1), random_hidden(2)
    one, other = random_head(3, softcap=softcap), random_head(4)
    found = first_token_kl(before, one, after, other, rows=rows)
    expected = reference(one.logits(before), other.logits(after))
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


def test_kl_of_a_model_with_itself_is_exactly_zero() -> None:
    hidden, head = random_hidden(1), random_head(2)
    assert first_token_kl(hidden, head, hidden.clone(), head).eq(0).all()


def test_kl_is_not_symmetric_and_the_original_comes_first() -> None:
    sharp, flat = torch.tensor([[5.0, 0.0]]).log_softmax(-1), torch.tensor([[0.5, 0.5]]).log()
    assert float(kl_divergence(sharp, flat)) == pytest.approx(
        float(rel_entr([0.9933071, 0.0066929], [0.5, 0.5]).sum()), rel=1e-5
    )
    assert float(kl_divergence(flat, sharp)) > 2 * float(kl_divergence(sharp, flat))


def test_tiny_probabilities_need_no_epsilon() -> None:
    log_p = torch.tensor([[0.0, -200.0]], dtype=torch.float64).log_softmax(-1)
    log_q = torch.tensor([[-200.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    assert float(kl_divergence(log_p, log_q)) == pytest.approx(200.0)


def test_different_vocabularies_and_prompts_are_errors() -> None:
    hidden = random_hidden(1)
    with pytest.raises(MeasurementError, match="same vocabulary"):
        first_token_kl(hidden, random_head(1), hidden, random_head(1, vocab=51))
    with pytest.raises(MeasurementError, match=r"10 rows of the original .* 9 of the edited"):
        first_token_kl(hidden, random_head(1), hidden[:9], random_head(1))


def test_sequence_kl_equals_teacher_forcing_with_whole_logits() -> None:
    original, edited = tiny_model("llama", seed=2), tiny_model("llama", seed=2)
    edited.module.get_parameter("model.layers.1.mlp.down_proj.weight").data *= 1.5
    encoded = encode(original, PROMPTS)
    completions = generate(original, encoded, max_new_tokens=5, task="t")
    states = [completion_hidden(m, encoded, completions, task="t") for m in (original, edited)]
    found = sequence_kl(states[0], head_of(original), states[1], head_of(edited))
    expected = []
    for ids, completion in zip(encoded.ids, completions, strict=True):
        whole = torch.tensor([ids + completion.token_ids])
        with torch.no_grad():
            one, other = (m.module(input_ids=whole).logits[0] for m in (original, edited))
        expected.append(reference(one[len(ids) - 1 : -1], other[len(ids) - 1 : -1]))
    np.testing.assert_allclose(found.kl.numpy(), np.concatenate(expected), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        found.per_prompt().numpy(), [kl.mean() for kl in expected], rtol=1e-6, atol=1e-9
    )
    lengths = [len(kl) for kl in expected]
    last = [kl[max(lengths) - 1] for kl in expected if len(kl) == max(lengths)]
    assert float(found.by_position()[-1]) == pytest.approx(np.mean(last), rel=1e-6)
    assert found.by_position().shape[0] == max(lengths)
    assert found.kl.max() > 1e-4


def test_first_position_of_the_sequence_is_the_first_token() -> None:
    original, edited = tiny_model("llama", seed=2), tiny_model("llama", seed=3)
    encoded = encode(original, PROMPTS)
    completions = generate(original, encoded, max_new_tokens=3, task="t")
    states = [completion_hidden(m, encoded, completions, task="t") for m in (original, edited)]
    heads = head_of(original), head_of(edited)
    sequence = sequence_kl(states[0], heads[0], states[1], heads[1])
    last = [last_hidden(m, encoded, task="t") for m in (original, edited)]
    first = first_token_kl(last[0], heads[0], last[1], heads[1])
    torch.testing.assert_close(sequence.kl[sequence.position == 0], first, rtol=1e-6, atol=1e-9)


def test_states_of_other_completions_are_an_error() -> None:
    index = torch.arange(3)
    one = TokenStates(random_hidden(1, 3), index, index, index)
    other = TokenStates(random_hidden(1, 3), index + 1, index, index)
    with pytest.raises(MeasurementError, match="targets differ"):
        sequence_kl(one, random_head(1), other, random_head(1))
