"""The plain loop says what ours says, and where two completions part is found."""

import generation as benchmark
import pytest
import torch

from obliteratus.measure.generation import generate, stop_tokens
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.builtin import refusal
from obliteratus.testing.tiny import tiny_model

TOKENS = 9


@pytest.fixture
def model() -> LoadedModel:
    found = tiny_model("llama", seed=2)
    head = found.module.get_submodule(found.anatomy.head)
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5))
    head.weight = torch.nn.Parameter(noise.double(), requires_grad=False)
    return found


def test_the_plain_loop_says_what_ours_says(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several batches, with stop tokens, and whatever penalty the model asks for."""
    monkeypatch.setattr(benchmark, "PLAIN_BATCH", 3)
    encoded = encode(model, benchmark.prompts("both", 8))
    model.module.generation_config.eos_token_id = None
    first = generate(model, encoded, max_new_tokens=TOKENS, task="t")
    rows = [completion.token_ids for completion in first]
    stop = max(
        sorted({token for row in rows for token in row}),
        key=lambda token: len({row.index(token) for row in rows if token in row}),
    )
    model.module.generation_config.eos_token_id = [stop, stop]
    model.module.generation_config.repetition_penalty = 3.0
    ours = generate(model, encoded, max_new_tokens=TOKENS, task="t")
    said = benchmark.plain(model, encoded, TOKENS)
    assert said == [completion.token_ids for completion in ours]
    assert len({len(ids) for ids in said}) > 1
    assert any(ids[-1] in stop_tokens(model) for ids in said)


def test_prompts_are_spread_over_both_sides() -> None:
    contrast = refusal()
    harmful = {prompt.text: prompt.category for prompt in contrast.harmful}
    harmless = {prompt.text for prompt in contrast.harmless}
    both = benchmark.prompts("both", 33)
    assert [text in harmful for text in both] == [True] * 17 + [False] * 16
    assert len({harmful[text] for text in both[:17]}) == 16
    assert set(benchmark.prompts("harmless", 5)) <= harmless


def test_where_two_completions_part_is_told_with_the_gap_of_the_logits(model: LoadedModel) -> None:
    encoded = encode(model, ["Hi", "Why?"])
    said = generate(model, encoded, max_new_tokens=TOKENS, task="t")[1].token_ids
    other = (*said[:4], (said[4] + 1) % 100, *said[5:])
    found = benchmark.difference(model, encoded, 1, said, other)
    ids = torch.tensor([(*encoded.ids[1], *said[:4])])
    logits = model.module(ids).logits[0, -1]
    assert (found.prompt, found.token) == (1, 4)
    assert found.gap == pytest.approx(float(logits[said[4]] - logits[other[4]]), rel=1e-5)
    assert found.gap > 0
    assert benchmark.difference(model, encoded, 1, said, said[:3]).gap == float("inf")


def test_what_is_printed_has_every_way_and_no_text(model: LoadedModel) -> None:
    texts = benchmark.prompts("both", 6)
    lines = "\n".join(benchmark.contest(model, texts, TOKENS).report(1))
    for name in ("plain", "ours", "certain", "bounded"):
        assert f"\n{name}" in lines
    assert "identical completions: 100.0%" in lines
    for completion in generate(model, encode(model, texts), max_new_tokens=TOKENS, task="t"):
        assert completion.text not in lines
    assert not any(text in lines for text in texts)
