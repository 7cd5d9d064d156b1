"""A thought is told from an answer, exactly, wherever the tokens are cut and a limit falls."""

from dataclasses import replace

import pytest
import torch

from obliteratus.errors import MeasurementError
from obliteratus.measure import generation
from obliteratus.measure.generation import generate, stop_tokens
from obliteratus.measure.writing import Completion, Limits, Thought, Writing
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.reasoning import MARKERS, Markers, Reasoning
from obliteratus.testing.thinking import CHANNEL_HEADER, TEMPLATES, scripted_model
from obliteratus.testing.tiny import tiny_model, tiny_tokenizer

THINK, CHANNELS = (
    next(each for each in MARKERS if each.opening.startswith(start))
    for start in ("<think>", "<|channel|>analysis")
)
CODE = "Write `</think>` to end, as in:\n```\n<think>x</think>\n```"
LONG = "word " * 12


def written(
    text: str, limits: Limits, *, is_open: bool = False, markers: Markers = THINK, stop: bool = True
) -> tuple[Completion, int]:
    """What becomes of a model that writes ``text``, and how many tokens of it were taken."""
    tokenizer = tiny_tokenizer()
    stops = frozenset({tokenizer.convert_tokens_to_ids("<eos>")})
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *(stops if stop else ())]
    pen = Writing(tokenizer, stops, limits, markers, "thought" if is_open else "start")
    for taken, token in enumerate(ids, start=1):
        if pen.add(token):
            return pen.completion(), taken
    raise AssertionError("the model was not stopped")


def parts(completion: Completion) -> tuple[str | None, str]:
    thought = completion.thought
    return (None if thought is None else thought.text), completion.text.strip()


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, ("Hm.", "Yes.")),
        ("\n<think>Hm.</think>Yes.", False, ("Hm.", "Yes.")),
        ("Hm.\n</think>\n\nYes.", True, ("Hm.", "Yes.")),
        ("<think>\nHm.</think>Yes.", True, ("Hm.", "Yes.")),
        ("\n\n</think>\n\nYes.", True, ("", "Yes.")),
        ("<think></think>Yes.", False, ("", "Yes.")),
        (CODE, False, (None, CODE)),
        ("<thinks> are no thoughts.</think>", False, (None, "<thinks> are no thoughts.</think>")),
        ("I write <think>Hm.</think>", False, (None, "I write <think>Hm.</think>")),
        (f"<think>Hm.</think>{CODE}", False, ("Hm.", CODE)),
        ("<", False, (None, "<")),
        ("", False, (None, "")),
    ],
)
def test_a_thought_is_what_was_opened_first_up_to_its_first_end(text, is_open, expected):
    found, _ = written(text, Limits(200, 200), is_open=is_open)
    assert parts(found) == expected
    assert found.is_finished
    assert not found.is_cut_in_thought
    assert found.thought is None or found.thought.is_closed


def test_every_token_is_in_the_thought_or_the_answer():
    text = "<think>\nHm.\n</think>\n\nYes."
    found, taken = written(text, Limits(50, 50))
    assert found.thought is not None
    ids = (*found.thought.token_ids, *found.token_ids)
    assert len(ids) == taken
    assert tiny_tokenizer().decode(ids) == f"{text}<eos>"
    assert tiny_tokenizer().decode(found.thought.token_ids) == "<think>\nHm.\n</think>"


@pytest.mark.parametrize("short", [0, 1])
def test_a_thought_one_token_too_long_is_cut_and_has_no_answer(short):
    thought = "<think>Hm.</think>"
    found, taken = written(f"{thought}Yes.", Limits(3, len(thought) - short), stop=False)
    assert found.thought is not None
    if short:
        assert taken == len(thought) - 1
        assert found == Completion((), "", False, replace(found.thought, is_closed=False))
        assert found.is_cut_in_thought
    else:
        assert taken == len(thought) + 3
        assert (found.text, found.is_finished, found.is_cut_in_thought) == ("Yes", False, False)


def test_an_answer_without_a_thought_has_its_own_limit_only():
    found, taken = written("No, I say.", Limits(4, 500), stop=False)
    assert (found.text, found.thought, taken) == ("No, ", None, 4)


def test_a_thought_that_nobody_asked_for_takes_from_the_answer():
    found, taken = written(f"<think>{LONG}</think>Yes.", Limits(30))
    assert (found.text, taken, found.is_cut_in_thought) == ("", 30, True)
    found, taken = written("<think>Hm.</think>Yes, I do.", Limits(21), stop=False)
    assert (parts(found), taken) == (("Hm.", "Yes"), 21)


def test_a_model_that_stops_in_its_thought_has_answered_nothing():
    found, _ = written("<think>Hm.", Limits(50, 50))
    assert found.thought is not None
    assert (found.text, found.is_finished, len(found.token_ids)) == ("", True, 1)
    assert not found.is_cut_in_thought  # it is known what it said
    assert (found.thought.text, found.thought.is_closed) == ("Hm.", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Y",
            ("Hm.", "Y"),
        ),
        ("<|channel|>final<|message|>Y", ("", "Y")),
        ("<|channel|>commentary<|message|>Y", (None, "<|channel|>commentary<|message|>Y")),
    ],
)
def test_channels_are_told_apart(text, expected):
    found, _ = written(text, Limits(200, 200), markers=CHANNELS)
    assert parts(found) == expected


def test_markers_that_are_special_tokens_are_seen_too():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = tokenizer("<think>Hm.</think>Yes.", add_special_tokens=False)["input_ids"]
    assert len(ids) == 9
    pen = Writing(tokenizer, frozenset(), Limits(4, 20), THINK, "start")
    assert [pen.add(token) for token in ids] == [False] * 8 + [True]
    assert parts(pen.completion()) == ("Hm.", "Yes.")


def test_a_token_that_ends_the_marker_and_begins_the_answer_loses_nothing():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([">Yes", ">\n\n"])
    for joined, left in ((">Yes", ", I do."), (">\n\n", "Yes, I do.")):
        ids = tokenizer(f"<think>Hm.</think{joined}{left}", add_special_tokens=False)["input_ids"]
        pen = Writing(tokenizer, frozenset(), Limits(len(left), 50), THINK, "start")
        assert [pen.add(token) for token in ids][-1]
        assert parts(pen.completion()) == ("Hm.", "Yes, I do.")


def test_markers_of_several_bytes_a_character_are_seen():
    kimi = next(each for each in MARKERS if each.opening == "◁think▷")
    found, _ = written("◁think▷Hm.◁/think▷Yes.", Limits(90, 90), markers=kimi)
    assert parts(found) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    ("kind", "turn"),
    [
        ("switched", "<think>\nHm.\n</think>\n\nYes."),
        ("opened", "<think>\nHm.\n</think>\n\nYes."),
        ("bracketed", "[THINK]Hm.[/THINK]Yes."),
        (
            "channels",
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Yes.",
        ),
    ],
)
def test_a_model_that_thinks_is_split_and_one_kept_from_it_is_not(kind, turn):
    """The scripted model has one turn with a thought and, behind an empty one, another answer."""
    header = CHANNEL_HEADER if kind == "channels" else "<|im_start|>assistant\n"
    model = scripted_model(TEMPLATES[kind], {}, header=header)
    silent = model.tokenizer.decode(encode(model, ["Why?"]).ids[0]).rpartition(header)[2]
    model = scripted_model(TEMPLATES[kind], {"Why?": [turn, f"{silent}At once."]}, header=header)
    (slow,) = generate(
        model, encode(model, ["Why?"], thinks=True), max_new_tokens=9, thought_tokens=99, task="t"
    )
    assert parts(slow) == ("Hm.", "Yes.")
    (fast,) = generate(
        model, encode(model, ["Why?"]), max_new_tokens=9, thought_tokens=99, task="t"
    )
    assert parts(fast) == (None, "At once.")


def scattered(family: str) -> tuple[object, Encoded, list[tuple[int, ...]]]:
    """A random model whose rows end thoughts at many steps: with a byte that it does write."""
    model = tiny_model(family, seed=2)
    head = model.module.get_submodule(model.anatomy.head)
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5))
    head.weight = torch.nn.Parameter(noise.double(), requires_grad=False)
    model.module.generation_config.eos_token_id = None
    encoded = encode(
        model, ("Hi", "What is the time?", "Hi", "A longer question, of nothing.", "Why")
    )
    rows = []
    for ids in encoded.ids:
        tokens = torch.tensor([ids])
        output = model.module.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=24,
            pad_token_id=0,
        )
        rows.append(tuple(output[0, len(ids) :].tolist()))
    every = {
        token
        for row in rows
        for token in row
        if "!" <= model.tokenizer.decode([token]) <= "~"  # no part of a longer character
    }

    def ends(token: int) -> int:
        return len({row[:12].index(token) if token in row[:12] else -1 for row in rows})

    chosen = max(sorted(every), key=ends)
    closing = model.tokenizer.decode([chosen])
    assert ends(chosen) > 1
    reasoning = Reasoning(Markers("<open>", closing), None, prompt_opens=True, suffix="")
    return model, replace(encoded, reasoning=reasoning, thinks=True), rows


@pytest.mark.parametrize("fewest", [1, 64])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba2", "openai-gpt"])
def test_in_batches_too_every_row_has_a_thought_and_an_answer_of_its_own(
    family: str, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is transformers' own generation, row by row, cut where the closing byte is."""
    monkeypatch.setattr(generation, "FEWEST_CPU_ROWS", fewest)
    model, encoded, rows = scattered(family)
    assert encoded.reasoning is not None
    closing = encoded.reasoning.markers.closing
    found = generate(model, encoded, max_new_tokens=5, thought_tokens=12, task="t")
    for completion, row in zip(found, rows, strict=True):
        texts = [model.tokenizer.decode([token]) for token in row]
        assert completion.thought is not None
        if closing in texts[:12]:
            begins = texts.index(closing) + 1
            assert completion.thought.token_ids == row[:begins]
            assert completion.token_ids == row[begins : begins + 5]
        else:
            assert completion.thought == Thought(row[:12], completion.thought.text, False)
            assert completion.is_cut_in_thought
    assert len({len(completion.thought.token_ids) for completion in found}) > 1


def test_without_leave_to_think_the_same_model_writes_its_answer_at_once() -> None:
    model, encoded, rows = scattered("llama")
    plain = generate(
        model, replace(encoded, thinks=False), max_new_tokens=5, thought_tokens=12, task="t"
    )
    assert [each.token_ids for each in plain] == [row[:5] for row in rows]
    assert {each.thought for each in plain} == {None}


def test_a_thought_beyond_what_the_model_takes_is_refused() -> None:
    model = scripted_model(TEMPLATES["opened"], {})
    encoded = encode(model, ["Why?"], thinks=True)
    assert stop_tokens(model)
    with pytest.raises(MeasurementError, match=r"lower verify\.thought_tokens or verify\.max_new"):
        generate(model, encoded, max_new_tokens=4, thought_tokens=600, task="t")
    generate(model, encode(model, ["Why?"]), max_new_tokens=4, thought_tokens=600, task="t")
