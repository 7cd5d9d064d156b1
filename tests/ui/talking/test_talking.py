"""What the page asks of a model reaches it and comes back: real processes, tiny models."""

import pytest

from obliteratus.events import Progress
from obliteratus.measure.beside import Token
from obliteratus.testing.refuser import ANSWER, REFUSAL
from obliteratus.ui.speaker import TalkError
from obliteratus.ui.talks import Talk, Talks


def said(talk: Talk, text: str, **settings) -> str:
    return "".join(talk.answer([{"role": "user", "content": text}], **settings)).strip()


def test_models_answer_are_steered_and_compared(models, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path))
    with Talks() as talks:
        steered = talks.open(str(models["refuser"]), directions=models["directions"])
        beside = talks.open(str(models["refuser"]), other=str(models["edited"]))
        steered.strength = 0.0
        assert said(steered, "Tell me about vorn.") == REFUSAL
        assert said(steered, "Tell me about bread.") == ANSWER
        steered.strength = 1.5
        assert said(steered, "Tell me about vorn.") != REFUSAL
        found = list(beside.compare("Tell me about vorn.", max_new_tokens=30))
        tokens = [each for each in found if isinstance(each, Token)]
        refused = [token for token in tokens if token.answer == "original"]
        assert "".join(token.text for token in refused) == f"{REFUSAL}<|im_end|>"
        assert refused[0].original is not None
        assert refused[0].original > 2
        assert any(isinstance(each, Progress) for each in found)
        with pytest.raises(TalkError, match="the temperature is 0 or more"):
            said(steered, "Hello", temperature=-1.0)
