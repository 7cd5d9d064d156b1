import pytest
import torch

from obliteratus.errors import MeasurementError
from obliteratus.measure import likelihood
from obliteratus.measure.documents import heldout
from obliteratus.measure.generation import Completion, generate
from obliteratus.measure.likelihood import completion_nll, document_nll
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.tiny import tiny_model

TEXTS = ("A short one.", "Another text, a little longer than the first.", "Né!")


def whole_nll(model: LoadedModel, ids: list[int], first: int = 1) -> float:
    with torch.no_grad():
        log_p = model.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(log_p[place - 1, ids[place]]) for place in range(first, len(ids)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_every_token_after_the_beginning_is_scored_once(family: str) -> None:
    model = tiny_model(family)
    found = document_nll(model, TEXTS, task="t")
    ids = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    assert all(row[0] == model.tokenizer.bos_token_id for row in ids)
    assert found.tokens.tolist() == [len(row) - 1 for row in ids]
    expected = torch.tensor([whole_nll(model, row) for row in ids], dtype=torch.float64)
    torch.testing.assert_close(found.nll, expected, rtol=1e-6, atol=1e-6)
    assert found.per_token == pytest.approx(float(expected.sum()) / sum(map(len, ids), -3))


def test_without_a_beginning_token_the_first_one_is_not_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(model.tokenizer._tokenizer, "post_processor", None, raising=False)
    plain = {text: [ord(c) for c in text] for text in TEXTS}
    monkeypatch.setattr(
        type(model.tokenizer), "__call__", lambda _, text, **__: {"input_ids": plain[text]}
    )
    found = document_nll(model, TEXTS, task="t")
    assert found.tokens.tolist() == [len(text) - 1 for text in TEXTS]
    assert float(found.nll[0]) == pytest.approx(whole_nll(model, plain[TEXTS[0]]), rel=1e-6)


def test_an_end_token_that_the_tokenizer_adds_is_not_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    end = model.tokenizer.eos_token_id
    monkeypatch.setattr(
        type(model.tokenizer), "__call__", lambda *_, **__: {"input_ids": [1, 40, 41, end]}
    )
    assert document_nll(model, ["x"], task="t").tokens.tolist() == [2]


@pytest.mark.parametrize("length", [8, 9, 12, 13, 30])
def test_a_text_longer_than_the_context_is_scored_in_windows(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(likelihood, "MAX_WINDOW", 8)
    text = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnop"[: length - 1]
    ids = model.tokenizer(text)["input_ids"]
    found = document_nll(model, [text], task="t")
    assert found.tokens.tolist() == [length - 1]
    expected = whole_nll(model, ids[:8])
    for done in range(8, length, 4):
        end = min(done + 4, length)
        window = ids[end - 8 : end]
        expected += whole_nll(model, window, first=8 - (end - done))
    assert float(found.nll[0]) == pytest.approx(expected, rel=1e-6)


def test_a_model_finds_its_own_completions_more_probable_than_others() -> None:
    model = tiny_model("llama", seed=2)
    encoded = encode(model, TEXTS)
    own = generate(model, encoded, max_new_tokens=6, task="t")
    other = [
        Completion(tuple(range(40, 40 + len(c.token_ids))), "", is_finished=False) for c in own
    ]
    mine = completion_nll(model, encoded, own, task="t")
    theirs = completion_nll(model, encoded, other, task="t")
    assert mine.tokens.tolist() == [len(completion.token_ids) for completion in own]
    assert mine.per_token < theirs.per_token
    ids = [*encoded.ids[0], *own[0].token_ids]
    expected = whole_nll(model, ids, first=len(encoded.ids[0]))
    assert float(mine.nll[0]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_text_with_nothing_to_score_is_an_error() -> None:
    model = tiny_model("llama")
    with pytest.raises(MeasurementError, match="no documents"):
        document_nll(model, [], task="t")
    with pytest.raises(MeasurementError, match="1 of 2 sequences"):
        document_nll(model, ["fine", ""], task="t")


def test_the_held_out_documents_are_distinct_prose_of_several_genres() -> None:
    documents = heldout()
    assert len({document.id for document in documents}) == len(documents) >= 40
    assert len({document.genre for document in documents}) >= 4
    assert len({document.text for document in documents}) == len(documents)
    assert sum(len(document.text.split()) for document in documents) >= 10_000
