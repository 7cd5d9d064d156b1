"""Two models answer one prompt: each as it would alone, and both are asked at every token."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.errors import MeasurementError, UnsupportedArchitectureError
from obliteratus.measure import answer_rows
from obliteratus.measure.beside import ANSWERS, Token, Whose
from obliteratus.measure.divergence import kl_divergence
from obliteratus.measure.generation import generate
from obliteratus.measure.log_odds import RefusalTokens, log_odds, refusal_log_odds
from obliteratus.measure.side_by_side import Side, side_by_side, steered_side
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.steering import steering
from obliteratus.settings import EditSettings
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import copied, exact_logits, random_directions
from obliteratus.testing.planted_transformer import planted
from obliteratus.testing.tiny import tiny_model

NEW_TOKENS = 10
PROMPT = "What is the time?"
TOKENS = RefusalTokens((40, 41, 90))
EXACT = 1e-9
CACHES = (
    *("llama", "gpt2", "gemma2", "gemma3_text", "mixtral", "gemma3n_text"),
    *("minimax", "openai-gpt", "zaya", "longcat_flash", "mamba", "mamba2", "falcon_h1"),
)
"""Keys and values, windows, shared layers, states, a cache of its own, and none."""


def talkative(family: str) -> LoadedModel:
    """A tiny model with a head of its own: with a tied one it repeats its last token for ever."""
    model = tiny_model(family, seed=2)
    head = model.module.get_submodule(model.anatomy.head)
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5))
    head.weight = torch.nn.Parameter(noise.double(), requires_grad=False)
    return model


def edit_of(model: LoadedModel, strength: float = 1.0) -> LoadedModel:
    """A copy of ``model``, its weights edited along a random direction."""
    found = copied(model)
    excise(found, plan(found, random_directions(model), EditSettings(strength=strength)))
    return replace(found, source=replace(found.source, asked="the edit"))


def other(model: LoadedModel) -> LoadedModel:
    """A copy of ``model`` with other matrices, for families whose weights cannot be edited."""
    found = copied(model)
    generator = torch.Generator().manual_seed(7)
    for weight in (weight for weight in found.module.parameters() if weight.ndim > 1):
        weight.data *= 1 + 0.3 * torch.randn(weight.shape, generator=generator)
    return found


def of(tokens: Sequence[Token], answer: Whose) -> list[Token]:
    return [token for token in tokens if token.answer == answer]


def ids(tokens: Sequence[Token], answer: Whose) -> tuple[int, ...]:
    return tuple(token.token_id for token in of(tokens, answer))


def alone(model: LoadedModel) -> tuple[int, ...]:
    """What ``model`` says by itself."""
    encoded = encode(model, [PROMPT])
    return generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")[0].token_ids


def predictions(model: LoadedModel, answer: tuple[int, ...]) -> Tensor:
    """The reference: one pass without a cache; row i is what comes after i tokens of the answer."""
    prompt = encode(model, [PROMPT]).ids[0]
    logits = exact_logits(model, torch.tensor([[*prompt, *answer[:-1]]]))[0, len(prompt) - 1 :]
    return logits.log_softmax(dim=-1)


def compared(original: Side, edited: Side, **options) -> list[Token]:
    given = {"max_new_tokens": NEW_TOKENS, "tokens": TOKENS} | options
    with ExactFloat64():
        return list(side_by_side(original, edited, PROMPT, **given))


@pytest.mark.parametrize("family", CACHES)
def test_both_answers_are_those_that_the_models_give_alone(family: str) -> None:
    model = talkative(family)
    edited = other(model)
    with ExactFloat64():
        expected = alone(model), alone(edited)
    assert expected[0] != expected[1]
    found = compared(Side(model), Side(edited))
    assert (ids(found, "original"), ids(found, "edited")) == expected
    assert [token.index for token in of(found, "edited")] == list(range(len(expected[1])))


@pytest.mark.parametrize("family", ["llama", "gemma3n_text", "mamba2"])
def test_every_token_has_what_both_models_predict_at_its_place(family: str) -> None:
    model = talkative(family)
    edited = other(model)
    found = compared(Side(model), Side(edited))
    for answer in ANSWERS:
        rows = [predictions(each, ids(found, answer)) for each in (model, edited)]
        tokens = of(found, answer)
        kl = kl_divergence(*rows).tolist()
        assert [token.kl for token in tokens] == pytest.approx(kl, abs=EXACT)
        assert max(kl) > 0.01
        for name, side in zip(ANSWERS, rows, strict=True):
            odds = log_odds(side, TOKENS.ids).tolist()
            assert [getattr(token, name) for token in tokens] == pytest.approx(odds, abs=EXACT)


def test_equal_sides_do_not_diverge_at_any_token() -> None:
    model = talkative("llama")
    found = compared(Side(model), Side(copied(model)))
    assert ids(found, "original") == ids(found, "edited")
    assert {token.kl for token in found} == {0.0}
    assert all(token.original == token.edited for token in found)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_steered_side_is_the_edited_model(family: str) -> None:
    model = talkative(family)
    loaded = compared(Side(model), Side(edit_of(model, 1.3)))
    directions = random_directions(model)
    with steering(model, directions, kind="write_projection", strength=0.0) as dial:
        found = compared(Side(model), steered_side(model, dial, lambda: 1.3))
        assert set(dial.strength.values()) == {0.0}
    for answer in ANSWERS:
        assert ids(found, answer) == ids(loaded, answer)
    assert [t.kl for t in found] == pytest.approx([t.kl for t in loaded], abs=EXACT)
    assert [t.edited for t in found] == pytest.approx([t.edited for t in loaded], abs=EXACT)
    assert ids(found, "original") != ids(found, "edited")


def test_the_strength_is_turned_between_two_tokens() -> None:
    model = talkative("llama")
    strength = [0.0]
    found: list[Token] = []
    directions = random_directions(model)
    with steering(model, directions, kind="write_projection", strength=0.0) as dial:
        sides = Side(model), steered_side(model, dial, lambda: strength[0])
        for token in side_by_side(*sides, PROMPT, max_new_tokens=NEW_TOKENS):
            found.append(token)
            if token.index == 3:
                strength[0] = 1.0
    assert {token.kl for token in found if token.index <= 3} == {0.0}
    assert all(token.kl > 0 for token in found if token.index > 3)


def test_an_answer_that_ends_leaves_the_other_as_it_would_be_alone() -> None:
    model = talkative("llama")
    edited = edit_of(model)
    model.module.generation_config.eos_token_id = None
    edited.module.generation_config.eos_token_id = None
    said = alone(model)
    stop = next(token for token in said[1:] if token not in alone(edited))
    model.module.generation_config.eos_token_id = [stop]
    edited.module.generation_config.eos_token_id = [stop]
    found = compared(Side(model), Side(edited))
    *before, last = of(found, "original")
    assert last.is_end
    assert not any(token.is_end for token in (*before, *of(found, "edited")))
    assert ids(found, "original") == said[: said.index(stop) + 1]
    assert ids(found, "edited") == alone(edited)
    assert len(of(found, "edited")) == NEW_TOKENS > len(before) + 1


def test_the_trace_is_high_where_a_planted_refuser_refuses_and_nowhere_else() -> None:
    plant = planted("linear", noise=0.0)
    prompts = plant.prompts(4)
    basis = plant.truth.basis
    everywhere = dict.fromkeys(("embedding", *range(plant.model.anatomy.n_layers)), basis)
    with steering(plant.model, everywhere, kind="write_projection", strength=0.0) as dial:
        sides = Side(plant.model), steered_side(plant.model, dial, lambda: 1.0)

        def traced(text: str) -> tuple[list[Token], list[Token]]:
            tokens = list(
                side_by_side(*sides, text, max_new_tokens=12, tokens=plant.refusal_tokens)
            )
            return of(tokens, "original"), of(tokens, "edited")

        for prompt in prompts.harmful:
            refused, answered = traced(prompt.text)
            assert "".join(t.text for t in refused) == "I cannot help with that.<end>"
            assert answered[0].text == "Sure"
            truth = plant.predicted(prompt.text), plant.predicted(prompt.text, removed=basis)
            assert refused[0].original == pytest.approx(truth[0], abs=0.5)
            assert refused[0].edited == pytest.approx(truth[1], abs=0.5)
            assert refused[0].original > 2 > -2 > refused[0].edited
            later = [t.original for t in refused[1:]] + [t.edited for t in answered[1:]]
            assert max(odds for odds in later if odds is not None) < -2
            assert refused[0].kl > 2 > max(token.kl for token in refused[1:])
        for prompt in prompts.harmless:
            for token in (token for answer in traced(prompt.text) for token in answer):
                assert token.original is not None
                assert token.original < -2
                assert token.kl < 0.01


def test_the_first_score_is_that_of_the_prompt() -> None:
    model = talkative("llama")
    found = compared(Side(model), Side(model))
    with ExactFloat64():
        score = float(refusal_log_odds(model, encode(model, [PROMPT]), TOKENS)[0])
    assert found[0].original == pytest.approx(score, abs=EXACT)
    assert all(token.original is None for token in compared(Side(model), Side(model), tokens=None))


def test_texts_make_up_what_is_said() -> None:
    model = talkative("llama")
    found = of(compared(Side(model), Side(model), max_new_tokens=40), "original")
    written = [token for token in found if not token.is_end]
    said = str(model.tokenizer.decode([t.token_id for t in written], skip_special_tokens=True))
    assert said.startswith("".join(token.text for token in written))
    assert len(said) - sum(len(token.text) for token in written) < 4  # an incomplete character


def test_closing_leaves_no_strength_behind() -> None:
    model = talkative("llama")
    tokens = torch.tensor([[5, 6, 7]])
    before = exact_logits(model, tokens)
    directions = random_directions(model)
    with steering(model, directions, kind="write_projection", strength=0.0) as dial:
        sides = Side(model), steered_side(model, dial, lambda: 1.0)
        answers = side_by_side(*sides, PROMPT, max_new_tokens=NEW_TOKENS)
        assert math.isfinite(next(answers).kl)
        answers.close()
        assert torch.equal(exact_logits(model, tokens), before)


def test_models_that_cannot_be_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stranger = talkative("llama"), planted("linear").model
    with pytest.raises(MeasurementError, match="different vocabularies"):
        compared(Side(model), Side(stranger))
    renamed = edit_of(model)
    renamed = replace(renamed, tokenizer=tiny_model("llama").tokenizer)
    renamed.tokenizer.chat_template = renamed.tokenizer.chat_template.replace("\n", " ")
    with pytest.raises(MeasurementError, match="the edit put the prompt into different tokens"):
        compared(Side(model), Side(renamed))
    with pytest.raises(MeasurementError, match="500 new ones that is more than the"):
        compared(Side(model), Side(model), max_new_tokens=500)
    with pytest.raises(MeasurementError, match="at least 1 token; got 0"):
        compared(Side(model), Side(model), max_new_tokens=0)
    monkeypatch.setattr(answer_rows, "CACHE_NAMES", ("some_other_cache",))
    with pytest.raises(UnsupportedArchitectureError, match="takes none of some_other_cache"):
        compared(Side(model), Side(model))
