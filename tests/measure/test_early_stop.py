"""Answers that need not go on: which are stopped, what stays the same, what the audit counts."""

from dataclasses import replace

import pytest

from obliteratus.errors import UsageError
from obliteratus.measure import early_stop as module
from obliteratus.measure.agreement import labelled
from obliteratus.measure.degenerate import is_loop, loops_whatever_follows
from obliteratus.measure.early_stop import EarlyStop, Stopped, early_stop, is_audited
from obliteratus.measure.generation import Completion, _about, check_lengths, generate
from obliteratus.measure.judges.base import Judge, Ruling, TextJudge, judge_named
from obliteratus.measure.judges.keyword import UNREVOKED, keyword, keyword_settled
from obliteratus.measure.outcomes import Outcome
from obliteratus.measure.planted import plant, windows
from obliteratus.measure.writing import Limits, Writing
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.builtin import refusal
from obliteratus.testing.tiny import tiny_model, tiny_tokenizer

TEXTS = ("Hi", "What is the time?", "A much longer question, about nothing at all.", "Why?")
LIMIT = 24
PROMPT = "Do it."
REFUSED = "I'm sorry, but I can't assist with that."
ON = " It would be wrong to do so, and it could hurt people who have done nothing to you, or to us."


@pytest.fixture
def model() -> LoadedModel:
    found = tiny_model("llama", seed=2)
    found.module.generation_config.eos_token_id = None
    return found


def said(text: str) -> Completion:
    return Completion((), text, is_finished=True)


def long_judge(length: int, outcome: Outcome = "refusal") -> Judge:
    """A judge that is certain of ``outcome`` once a text has ``length`` characters."""
    return TextJudge(
        "long",
        lambda _, completion: outcome if len(completion.text) >= length else "compliance",
        lambda _, text, __: outcome if len(text) >= length else None,
    )


def test_stopped_answers_are_the_beginnings_of_whole_ones(model: LoadedModel) -> None:
    encoded = encode(model, TEXTS)
    whole = generate(model, encoded, max_new_tokens=LIMIT, task="t")
    lengths = {row: 8 + 4 * row for row in range(len(TEXTS))}
    found = generate(
        model,
        encoded,
        max_new_tokens=LIMIT,
        task="t",
        enough=lambda row, tokens, _: len(tokens) >= lengths[row],
    )
    for row, (short, long) in enumerate(zip(found, whole, strict=True)):
        assert short.token_ids == long.token_ids[: lengths[row]]
        assert short.is_cut
        assert not short.is_finished
    assert not any(completion.is_cut for completion in whole)


def test_an_answer_is_asked_about_with_its_own_text_and_prompt(model: LoadedModel) -> None:
    asked: list[tuple[int, int]] = []
    encoded = encode(model, TEXTS)
    whole = generate(model, encoded, max_new_tokens=LIMIT, task="t")

    def never(row: int, tokens: tuple[int, ...], text: str) -> bool:
        assert tokens == whole[row].token_ids[: len(tokens)]
        assert text == model.tokenizer.decode(list(tokens), skip_special_tokens=True)
        asked.append((row, len(tokens)))
        return False

    found = generate(model, encoded, max_new_tokens=LIMIT, task="t", enough=never, batch_rows=3)
    assert found == whole
    assert sorted(asked) == [(row, n) for row in range(len(TEXTS)) for n in (4, 8, 12, 16, 20)]


def test_the_texts_that_are_asked_about_are_linear_in_the_longest() -> None:
    lengths = sorted(check_lengths(4096))
    assert lengths[:11] == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 45]
    assert sum(lengths) < 9.5 * 4096
    assert check_lengths(4) == frozenset()


@pytest.mark.parametrize("text", [REFUSED, "I won't help with this.", "**I must decline.**"])
def test_a_refusal_stands_once_enough_follows_it(text: str) -> None:
    settled = text + ON
    assert keyword_settled(PROMPT, settled, 40) == keyword(PROMPT, said(settled)) == "refusal"
    assert keyword_settled(PROMPT, text, 40) is None
    assert keyword_settled(PROMPT, text + ON[: UNREVOKED // 2], 40) is None
    assert keyword_settled(PROMPT, text + " Here's how to do it." + ON, 40) is None
    assert keyword_settled(PROMPT, "The weather is fine." + ON, 40) is None


def test_no_compliance_is_certain() -> None:
    for text in windows(100)[:40]:
        assert keyword_settled(PROMPT, text, 0) is None


def test_a_labelled_answer_is_never_settled_wrongly() -> None:
    """At every 8 characters, with as many tokens left as 64 leave at 4 characters each."""
    count = 0
    for answer in labelled():
        whole = keyword(answer.prompt, said(answer.completion))
        for end in range(8, len(answer.completion), 8):
            left = max(0, 64 - end // 4)
            found = keyword_settled(answer.prompt, answer.completion[:end], left)
            assert found in (None, whole), answer.id
            count += found is not None
    assert count > 0


def test_a_loop_is_certain_when_nothing_new_can_outweigh_it() -> None:
    fresh = windows(50)[7].split()
    count = 0
    for window in windows(50)[::4]:
        text = "It begins. " + plant("loop", window, seed=0)
        for left in (0, 10, 40):
            if not loops_whatever_follows(text, left):
                continue
            count += 1
            assert is_loop(text + " " + " ".join(fresh[:left]))
            assert keyword_settled(PROMPT, text, left) == "degenerate"
        assert not loops_whatever_follows(text, 1000)
    assert count > 0
    assert not any(loops_whatever_follows(window, 0) for window in windows(50))


def test_a_refusal_that_then_loops_stays_a_refusal() -> None:
    loop = "no way " * 30
    assert keyword_settled(PROMPT, f"Well. {loop}", 0) == "degenerate"
    assert keyword_settled(PROMPT, f"{REFUSED} {loop}", 0) == "refusal"


def test_certain_stops_change_no_ruling(model: LoadedModel) -> None:
    judge, encoded = long_judge(10), encode(model, TEXTS)
    whole = generate(model, encoded, max_new_tokens=LIMIT, task="t")
    enough = early_stop("certain", judge, TEXTS, LIMIT)
    assert enough is not None
    found = generate(model, encoded, max_new_tokens=LIMIT, task="t", enough=enough)
    outcomes = [
        [judge.settled("", each.text, 0) or "compliance" for each in some]
        for some in (found, whole)
    ]
    assert outcomes[0] == outcomes[1]
    cut = sum(each.is_cut for each in found)
    assert cut > 0
    rulings = tuple(Ruling(outcome) for outcome in outcomes[0])
    assert enough.tally(model, found, rulings) == Stopped(len(TEXTS), cut, 0, 0, 0)


def test_prompts_that_are_not_named_are_answered_whole(model: LoadedModel) -> None:
    encoded = encode(model, TEXTS)
    whole = generate(model, encoded, max_new_tokens=LIMIT, task="t")
    enough = EarlyStop(long_judge(0), TEXTS[:2], LIMIT)
    found = generate(model, encoded, max_new_tokens=LIMIT, task="t", enough=enough)
    assert [each.is_cut for each in found] == [True, True, False, False]
    assert found[2:] == whole[2:]


def test_the_bound_stops_compliance_except_where_it_is_audited(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit counts the rulings that change after the bound, and only those."""
    monkeypatch.setattr(module, "is_audited", lambda text: text in TEXTS[:3])
    encoded = encode(model, TEXTS)
    whole = generate(model, encoded, max_new_tokens=LIMIT, task="t")
    changing = {TEXTS[0], TEXTS[1]}

    def rule(prompt: str, completion: Completion) -> Outcome:
        is_late = len(completion.token_ids) > 8
        return "refusal" if prompt in changing and is_late else "compliance"

    judge = TextJudge("late", rule, lambda *_: None)
    enough = EarlyStop(judge, TEXTS, LIMIT, bound=8)
    found = generate(model, encoded, max_new_tokens=LIMIT, task="t", enough=enough)
    assert [len(each.token_ids) for each in found] == [LIMIT, LIMIT, LIMIT, 8]
    assert found[3].token_ids == whole[3].token_ids[:8]
    rulings = tuple(Ruling(rule(t, each)) for t, each in zip(TEXTS, found, strict=True))
    assert enough.tally(model, found, rulings) == Stopped(4, 0, 1, 3, 2)


def test_what_is_no_answer_at_the_bound_goes_on(model: LoadedModel) -> None:
    judge = TextJudge("never", lambda *_: "refusal", lambda *_: None)
    enough = EarlyStop(judge, ("Hi",), LIMIT, bound=8)
    found = generate(model, encode(model, ["Hi"]), max_new_tokens=LIMIT, task="t", enough=enough)
    assert len(found[0].token_ids) == LIMIT
    assert enough.tally(model, found, (Ruling("refusal"),)) == Stopped(1, 0, 0, 0, 0)


def test_a_tenth_of_the_prompts_is_audited_whatever_is_measured() -> None:
    texts = [prompt.text for prompt in (*refusal().harmful, *refusal().harmless)]
    share = sum(map(is_audited, texts)) / len(texts)
    assert 0.08 < share < 0.12
    assert [is_audited(text) for text in texts] == [is_audited(text) for text in texts]


def test_a_judge_of_whole_answers_stops_none() -> None:
    judge = TextJudge("whole", lambda *_: "compliance")
    assert early_stop("off", judge, TEXTS, LIMIT) is None
    with pytest.raises(UsageError, match=r"'whole' never is\. Set verify.early_stop=off"):
        early_stop("certain", judge, TEXTS, LIMIT)


def test_what_decides_where_answers_stop_is_in_the_identity() -> None:
    judge = judge_named("keyword")
    kinds = [early_stop(kind, judge, TEXTS, LIMIT) for kind in ("certain", "bounded")]
    assert kinds[0] is not None
    assert kinds[1] is not None
    assert kinds[0].identity != kinds[1].identity
    assert replace(kinds[1], bound=16).identity != kinds[1].identity


def test_only_an_answer_is_asked_about_never_the_thought_before_it() -> None:
    pen = Writing(tiny_tokenizer(), frozenset(), Limits(64, 32), None, "thought", [5, 6, 7, 8])
    asked: list[tuple[int, ...]] = []

    def enough(row: int, token_ids: tuple[int, ...], text: str) -> bool:
        asked.append(token_ids)
        return True

    is_enough = _about([0], [pen], enough)
    assert not is_enough(0)
    assert asked == []
    pen.place, pen.begins = "answer", 4
    pen.token_ids += [9, 10, 11, 12]
    assert is_enough(0)
    assert asked == [(9, 10, 11, 12)]
    assert pen.is_cut
