"""A conversation hands over what is said piece by piece, and what was stopped as far as it got."""

import pytest
import torch

from obliteratus.errors import UsageError
from obliteratus.models.conversation import Conversation, Sampling
from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.planted_transformer import planted
from obliteratus.testing.tiny import tiny_model

ASK = "please describe vorn near the old bridge"
REFUSAL = ["I", " cannot", " help", " with", " that", "."]


@pytest.fixture(scope="module")
def refuser() -> LoadedModel:
    return planted("linear").model


def talkative() -> LoadedModel:
    """A model whose distributions are flat, so that what is drawn differs by seed."""
    model = tiny_model("llama", seed=1, dtype=torch.float32)
    model.module.generation_config.eos_token_id = None
    return model


def test_pieces_are_heard_as_they_are_written(refuser: LoadedModel) -> None:
    heard: list[str] = []
    talk = Conversation(refuser)
    assert talk.ask(ASK, heard.append) == "I cannot help with that."
    assert heard == REFUSAL
    assert talk.turns == [
        {"role": "user", "content": ASK},
        {"role": "assistant", "content": "I cannot help with that."},
    ]
    talk.forget()
    assert talk.turns == []


@pytest.mark.parametrize("after", [1, 3])
def test_an_answer_is_stopped_at_any_token_and_kept_as_far_as_it_got(
    refuser: LoadedModel, after: int
) -> None:
    asked: list[None] = []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) == after

    heard: list[str] = []
    talk = Conversation(refuser)
    answer = talk.ask(ASK, heard.append, stopped=stopped)
    assert len(asked) == after
    assert answer == "".join(REFUSAL[:after]).strip() == "".join(heard).strip()
    assert talk.turns[-1] == {"role": "assistant", "content": answer}


def test_ctrl_c_keeps_what_was_said(refuser: LoadedModel) -> None:
    def interrupt(piece: str) -> None:
        if piece == " help":
            raise KeyboardInterrupt

    talk = Conversation(refuser)
    assert talk.ask(ASK, interrupt) == "I cannot help"
    assert talk.turns[-1]["content"] == "I cannot help"


def test_sampling_draws_from_the_whole_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from its 50 likeliest tokens, which is what transformers does unless it is told."""
    model = talkative()
    kept: list[int] = []
    drawn = torch.multinomial

    def counted(probabilities: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        kept.append(int((probabilities > 0).sum()))
        return drawn(probabilities, *args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", counted)
    Conversation(model, sampling=Sampling(4, temperature=1.0)).ask("Hi", lambda _: None)
    vocabulary = model.module.config.vocab_size
    assert kept == [vocabulary] * 4
    Conversation(model, sampling=Sampling(4, 1.0, top_p=0.5)).ask("Hi", lambda _: None)
    assert max(kept[4:]) < vocabulary / 2


def test_a_seed_makes_sampling_repeatable() -> None:
    model = talkative()

    def said(seed: int, temperature: float = 1.0) -> str:
        talk = Conversation(model, sampling=Sampling(8, temperature))
        talk.seed(seed)
        return talk.ask("Hi", lambda _: None)

    assert said(3) == said(3) != said(4)
    assert said(3, temperature=0.0) == said(4, temperature=0.0)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"max_new_tokens": 0}, "at least 1 token; got 0"),
        ({"temperature": -0.5}, r"the temperature is 0 or more; got -0\.5"),
        ({"temperature": float("nan")}, "the temperature is 0 or more; got nan"),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1; got 0"),
        ({"top_p": 1.5}, r"at most 1; got 1\.5"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Sampling(**values)


def test_what_cannot_be_answered_is_said_and_not_kept(refuser: LoadedModel) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    talk = Conversation(model, start_over="Begin again.")
    with pytest.raises(UsageError, match=r"takes at most \d+\. Begin again\."):
        talk.ask("a" * 600, lambda _: None)
    assert talk.turns == []
    base = tiny_model("llama", dtype=torch.float32)
    base.tokenizer.chat_template = None
    with pytest.raises(UsageError, match=r"takes no system prompt. Leave the system prompt out"):
        Conversation(base, "Be brief.").ask("Hi", lambda _: None)
