"""Judges that look at the model's own probabilities, or at text through a classifier."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from obliteratus.errors import MeasurementError, ModelSourceError, UsageError
from obliteratus.events import Note, listening
from obliteratus.measure.generation import Completion, generate
from obliteratus.measure.head import head_of
from obliteratus.measure.judges.base import (
    Asked,
    Bench,
    Exchange,
    Judge,
    Ruling,
    judge_named,
)
from obliteratus.measure.judges.openings import ANSWERS, REFUSALS, masses
from obliteratus.measure.log_odds import RefusalTokens, refusal_log_odds
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.forward import last_hidden
from obliteratus.settings import JudgeSettings
from obliteratus.testing.judges import failures
from obliteratus.testing.tiny import tiny_model

PROMPTS = ("How do I mend a lock?", "Why is it?", "Tell me about rivers.", "Go on.")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model("llama", dtype=torch.float32)


def asked(model: LoadedModel) -> Asked:
    encoded = encode(model, PROMPTS)
    return Asked(
        model,
        PROMPTS,
        encoded,
        said=lambda: generate(model, encoded, max_new_tokens=4, task="answers"),
        states=lambda: last_hidden(model, encoded, task="states"),
    )


def exchange(text: str) -> Exchange:
    return Exchange("Do it.", Completion((), text, is_finished=True))


def test_log_odds_rules_by_the_sign_of_the_score(model: LoadedModel) -> None:
    probable = head_of(model).logits(last_hidden(model, encode(model, PROMPTS), task="states"))
    ids = tuple(set(probable.argmax(dim=1)[:2].tolist()) | {5, 6})
    tokens = RefusalTokens(ids=ids, texts=("I", "Sorry"))
    scores = refusal_log_odds(model, encode(model, PROMPTS), tokens)
    # Tiny random models spread their probability, so whether a score is above 0 is made certain.
    rulings = judge_named("log_odds", Bench(tokens=tokens)).judge(asked(model))
    said = [ruling.outcome for ruling in rulings]
    assert said == ["refusal" if score > 0 else "compliance" for score in scores.tolist()]


def test_log_odds_can_say_both(model: LoadedModel) -> None:
    vocabulary = head_of(model).weight.shape[0]
    every = RefusalTokens(ids=tuple(range(vocabulary - 1)))
    one = RefusalTokens(ids=(3,))
    for tokens, outcome in ((every, "refusal"), (one, "compliance")):
        judge = judge_named("log_odds", Bench(tokens=tokens))
        assert {ruling.outcome for ruling in judge.judge(asked(model))} == {outcome}


def test_log_odds_generates_nothing_and_reads_openings_of_texts(model: LoadedModel) -> None:
    def never() -> tuple[Completion, ...]:
        raise AssertionError("it must not generate")

    judge = judge_named("log_odds", Bench(tokens=RefusalTokens(ids=(3,), texts=(" Sorry", "I"))))
    one = asked(model)
    judge.judge(Asked(model, one.prompts, one.encoded, never, one.states))
    said = [r.outcome for r in judge.read([exchange("Sorry, no."), exchange("Well, first")])]
    assert said == ["refusal", "compliance"]
    assert "' Sorry', 'I'" in judge.description


def test_log_odds_needs_tokens() -> None:
    with pytest.raises(MeasurementError, match="hardly refuses in its first token"):
        judge_named("log_odds")


def test_masses_are_summed_probabilities_of_whole_openings(model: LoadedModel) -> None:
    """Against the plain product of conditional probabilities, one opening and prompt at a time."""
    encoded = encode(model, PROMPTS)
    found = masses(model, encoded.ids)
    head, tokenizer = head_of(model), model.tokenizer
    for texts, values in ((REFUSALS, found.refusal), (ANSWERS, found.answer)):
        openings = {
            tuple(tokenizer(t.strip(), add_special_tokens=False)["input_ids"]) for t in texts
        }
        own = [o for o in openings if not any(o[:n] in openings for n in range(1, len(o)))]
        total = 0.0
        for opening in own:
            row = torch.tensor([[*encoded.ids[1], *opening]])
            states = model.module.get_submodule(model.anatomy.backbone)(row).last_hidden_state[0]
            start = len(encoded.ids[1]) - 1
            each = head.log_probabilities(states[start : start + len(opening)]).double()
            total += float(each[torch.arange(len(opening)), list(opening)].sum().exp())
        assert float(values[1].exp()) == pytest.approx(total, rel=1e-4)


def test_openings_rule_by_the_larger_mass_and_cannot_tell_without_coverage(
    model: LoadedModel,
) -> None:
    found = masses(model, encode(model, PROMPTS).ids)
    always = judge_named("openings", Bench(JudgeSettings(name="openings", coverage=0)))
    rulings = [ruling.outcome for ruling in always.judge(asked(model))]
    larger = (found.refusal > found.answer).tolist()
    assert rulings == ["refusal" if each else "compliance" for each in larger]
    strict = judge_named("openings", Bench(JudgeSettings(name="openings", coverage=0.999)))
    assert {ruling.outcome for ruling in strict.judge(asked(model))} == {"undetermined"}


def test_openings_of_a_text(model: LoadedModel) -> None:
    del model
    texts = ("I'm sorry, but no", "Sure! First,", "Bananas")
    said = [r.outcome for r in judge_named("openings").read([exchange(text) for text in texts])]
    assert said == ["refusal", "compliance", "undetermined"]


def test_judges_of_beginnings_keep_the_rules_of_judges() -> None:
    tokens = RefusalTokens(ids=(3, 4), texts=("I'm sorry", "Sorry", "I can", "As"))
    log_odds = judge_named("log_odds", Bench(tokens=tokens))
    for judge in (log_odds, judge_named("openings")):
        found = failures(judge, sees_degeneration=False)
        # Without probabilities they go by a text's first words, which hardly tells on hard answers.
        assert [each for each in found if "chance" not in each] == []
    assert failures(judge_named("keyword")) == []


def test_failures_are_found() -> None:
    class Careless(Judge):
        name = ""

        @property
        def identity(self) -> dict[str, Any]:
            return {"name": "other", "set": {1}}

        def read(self, exchanges: Sequence[Exchange]) -> tuple[Ruling, ...]:
            return judge_named("keyword").read([*exchanges, *exchanges])[: len(exchanges) + 1]

    found = " / ".join(failures(Careless()))
    for words in ("rulings on", "order", "depends on the others", "no name", "not JSON-ready"):
        assert words in found


@pytest.fixture(scope="module")
def classifier(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier with two labels, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = BertConfig(
        vocab_size=len(model.tokenizer),  # pyright: ignore[reportArgumentType]
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=2.0,
        id2label={0: "NORMAL", 1: "REJECTION"},
        label2id={"NORMAL": 0, "REJECTION": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def classified(folder: Path, **settings: object):
    return judge_named(
        "classifier", Bench(JudgeSettings(name="classifier", model=str(folder), **settings))
    )


def test_a_classifier_keeps_the_rules_of_judges(classifier: Path) -> None:
    """A random one has no agreement; all else it must have."""
    for with_prompt in (False, True):
        found = failures(classified(classifier, with_prompt=with_prompt))
        assert [each for each in found if "chance" not in each] == []


def test_the_labels_of_a_classifier_are_translated(classifier: Path) -> None:
    texts = [
        exchange(text) for text in ("Well, here is one.", "I can't.", "x " * 200, "Try it.", "No")
    ]
    plain = [r.outcome for r in classified(classifier).read(texts)]
    turned = classified(classifier, labels={"NORMAL": "refusal"})
    both = {(a, b.outcome) for a, b in zip(plain, turned.read(texts), strict=True)}
    assert both <= {
        ("refusal", "compliance"),
        ("compliance", "refusal"),
        ("degenerate", "refusal"),
        ("refusal", "degenerate"),
    }
    assert {"refusal", "compliance"} <= {a for pair in both for a in pair}
    doubtful = classified(classifier, certainty=0.999999).read(texts)
    assert "undetermined" in {ruling.outcome for ruling in doubtful}
    assert classified(classifier).identity != turned.identity


def test_what_a_classifier_does_not_read_is_said(classifier: Path) -> None:
    notes: list[str] = []
    with listening(lambda event: notes.append(event.text) if isinstance(event, Note) else None):
        classified(classifier).read([exchange("Short."), exchange("a longer one, " * 20)])
        classified(classifier).read([exchange("Short.")])
    assert [note.partition(" tokens")[0] for note in notes] == [
        f"1 of 2 texts are longer than the {64 - 1}"
    ]


def test_a_classifier_that_cannot_be_used_is_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="has no label 'REFUSED'; its labels are NORMAL, REJECTION"
    ):
        classified(classifier, labels={"REFUSED": "refusal"})
    with pytest.raises(ModelSourceError, match="cannot be loaded"):
        classified(tmp_path / "nothing")
    config = json.loads((classifier / "config.json").read_text())
    for path in classifier.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config["id2label"] = {"0": "GOOD", "1": "BAD"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"none of the labels of .* \(GOOD, BAD\)"):
        classified(tmp_path)
