"""Tokens spelled one by one give the text that they give together."""

import pytest

from obliteratus.models.spelling import Spelling
from obliteratus.testing.planted_vocabulary import planted_tokenizer
from obliteratus.testing.tiny import tiny_tokenizer

TEXT = "Ångström – 《春》 or 🙂, two  spaces\nand a line"


def test_the_pieces_make_up_the_text() -> None:
    tokenizer = tiny_tokenizer()
    spelling = Spelling(tokenizer)
    ids: list[int] = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces = [spelling.add(token_id) for token_id in ids]
    assert "".join(pieces) == TEXT
    assert pieces[:2] == ["", "Å"]  # a byte alone is no character
    assert pieces != [tokenizer.decode([token_id]) for token_id in ids]


def test_a_space_stays_with_its_word() -> None:
    tokenizer = planted_tokenizer()
    spelling = Spelling(tokenizer)
    ids: list[int] = tokenizer("I cannot help", add_special_tokens=False)["input_ids"]
    assert [spelling.add(token_id) for token_id in ids] == ["I", " cannot", " help"]


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), planted_tokenizer()])
def test_special_tokens_add_nothing_and_have_a_name(tokenizer) -> None:
    spelling = Spelling(tokenizer)
    assert spelling.add(tokenizer.pad_token_id) == ""
    assert spelling.name(tokenizer.pad_token_id) == "<pad>"


def test_bytes_that_are_no_character_are_not_kept_for_ever() -> None:
    tokenizer = tiny_tokenizer()
    spelling = Spelling(tokenizer)
    (byte,) = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    pieces = [spelling.add(byte) for _ in range(12)]
    assert "".join(pieces) == tokenizer.decode([byte] * 12)
    assert all("".join(pieces[start : start + 4]) for start in range(9))
