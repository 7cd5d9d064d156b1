import math

import pytest
import torch

from obliteratus.errors import MeasurementError
from obliteratus.measure import log_odds as module
from obliteratus.measure.head import Head
from obliteratus.measure.log_odds import (
    REFUSAL_OPENINGS,
    RefusalTokens,
    calibrate,
    log_odds,
    opening_tokens,
    refusal_log_odds,
)
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.tiny import tiny_model

OPENINGS = ("I", "Sorry", "As", "No")


def planted(
    monkeypatch: pytest.MonkeyPatch, harmful: dict[str, float], harmless: dict[str, float]
) -> tuple[LoadedModel, torch.Tensor, torch.Tensor]:
    """A model whose first-token probabilities are given: of each opening, by class of prompt."""
    model = tiny_model("llama")
    vocab = model.module.config.vocab_size
    noise = torch.Generator().manual_seed(0)

    def states(side: dict[str, float]) -> torch.Tensor:
        p = torch.full((20, vocab), 1e-6, dtype=torch.float64)
        for word, probability in side.items():
            wobble = 1 + 0.1 * torch.randn(20, generator=noise).double()
            p[:, first_token(model, word)] = probability * wobble
        p[:, 200] = (1 - p.sum(1)).clamp(min=1e-6)
        return p.log()

    identity = Head(torch.eye(vocab, dtype=torch.float64))
    monkeypatch.setattr(module, "head_of", lambda _: identity)
    return model, states(harmful), states(harmless)


def first_token(model: LoadedModel, word: str) -> int:
    return model.tokenizer(word, add_special_tokens=False)["input_ids"][0]


def test_the_score_is_the_log_odds_of_the_total_probability() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    found = float(log_odds(p.log(), (1, 2)))
    assert found == pytest.approx(math.log(0.5 / 0.5))
    assert float(log_odds(p.log(), (3,))) == pytest.approx(math.log(0.4 / 0.6))


@pytest.mark.parametrize("gap", [80.0, -80.0])
def test_extreme_scores_are_not_clipped(gap: float) -> None:
    log_p = torch.tensor([[gap, 0.0]], dtype=torch.float64).log_softmax(-1)
    assert float(log_odds(log_p, (0,))) == pytest.approx(gap)


def test_the_score_of_a_model_is_that_of_its_whole_logits() -> None:
    model = tiny_model("gemma2")
    encoded = encode(model, ("Hi", "What is the time?", "Why?"))
    found = refusal_log_odds(model, encoded, RefusalTokens((40, 41, 50)))
    for row, ids in enumerate(encoded.ids):
        with torch.no_grad():
            p = model.module(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        total = float(p[[40, 41, 50]].sum())
        assert float(found[row]) == pytest.approx(math.log(total / (1 - total)), rel=1e-6)


def test_adding_the_head_row_of_a_token_to_the_stream_raises_its_score() -> None:
    model = tiny_model("llama")
    encoded = encode(model, ("Hi", "What is the time?", "Why?"))
    before = refusal_log_odds(model, encoded, RefusalTokens((40,)))
    row = model.module.get_submodule(model.anatomy.head).weight[40]
    norm = model.module.get_submodule(model.anatomy.final_norm)
    handle = norm.register_forward_hook(lambda *arguments: arguments[2] + row)
    after = refusal_log_odds(model, encoded, RefusalTokens((40,)))
    handle.remove()
    assert bool((after > before).all())


def test_calibration_keeps_what_only_harmful_prompts_evoke(monkeypatch: pytest.MonkeyPatch) -> None:
    harmful = {"I": 0.4, "Sorry": 0.3, "As": 0.005, "No": 0.02}
    harmless = {"I": 0.02, "Sorry": 0.001, "As": 0.0001, "No": 0.02}
    model, bad, good = planted(monkeypatch, harmful, harmless)
    tokens = calibrate(model, bad, good, openings=OPENINGS)
    assert set(tokens.texts) == {"I", "S"}
    assert tokens.harmful == pytest.approx(0.7, rel=0.1)
    assert tokens.harmless == pytest.approx(0.021, rel=0.1)
    assert tokens.reliability == 1.0


def test_a_token_with_which_every_answer_begins_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    harmful, harmless = {"I": 0.6, "Sorry": 0.3}, {"I": 0.5, "Sorry": 0.01}
    model, bad, good = planted(monkeypatch, harmful, harmless)
    assert calibrate(model, bad, good, openings=OPENINGS).texts == ("S",)


def test_a_model_that_refuses_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"I": 0.3, "Sorry": 0.1}
    model, bad, good = planted(monkeypatch, same, same)
    with pytest.raises(MeasurementError, match=r"hardly refuses in its first token"):
        calibrate(model, bad, good, openings=OPENINGS)


def test_reliability_of_two_samples_of_one_class_is_not_above_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [
        module._cross_fitted_auc(
            *torch.rand(2, 40, 30, generator=generator, dtype=torch.float64), 0.01, 1.0
        )
        for _ in range(50)
    ]
    assert abs(sum(scores) / len(scores) - 0.5) < 0.03


def test_openings_give_first_tokens_with_and_without_a_space() -> None:
    model = tiny_model("llama")
    found = opening_tokens(model, ("I", "I am", "Sorry"))
    assert {model.tokenizer.decode([token]) for token in found} == {"I", "S"}
    assert len(opening_tokens(model, REFUSAL_OPENINGS)) > 5


def test_too_few_prompts_and_empty_sets_are_errors() -> None:
    model = tiny_model("llama")
    few = encode(model, ("Hi", "Why?"))
    with pytest.raises(MeasurementError, match="at least 4"):
        calibrate(model, torch.ones(2, 16), torch.ones(2, 16))
    with pytest.raises(MeasurementError, match="0 of 261"):
        refusal_log_odds(model, few, RefusalTokens(()))
