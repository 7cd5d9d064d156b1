"""Credentials are taken out of texts, and nothing else is."""

import pytest

from obliteratus.store.secrets import without_secrets

TOKEN = "hf_" + "aB3" * 10


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"401 with {TOKEN}.", "401 with [credentials]."),
        ("at https://ada:pw@host:80/v1", "at https://[credentials]@host:80/v1"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [credentials]"),
        ("GET /x?token=abc123&y=1", "GET /x?token=[credentials]&y=1"),
        ("key sk-abcdefghijklmnop", "key [credentials]"),
    ],
)
def test_what_looks_like_a_credential_is_replaced(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


def test_the_value_of_a_variable_of_that_name_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_KEY", "open sesame")
    monkeypatch.setenv("MY_SERVER_KEYS_FOLDER", "unrelated words")
    monkeypatch.setenv("SHORT_TOKEN", "model")
    said = "refused: open sesame; unrelated words; model"
    assert without_secrets(said) == "refused: [credentials]; unrelated words; model"


def test_a_longer_value_is_not_cut_by_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-and-more")
    assert without_secrets("abcdefgh-and-more") == "[credentials]"


@pytest.mark.parametrize(
    "text",
    [
        "the model org/hf_model at https://huggingface.co/org/model@main is gated",
        "token 12 of 64 was not finite; basic removes one direction",
        "/home/ada/models: no such folder",
    ],
)
def test_ordinary_sentences_stay(text: str) -> None:
    assert without_secrets(text) == text
