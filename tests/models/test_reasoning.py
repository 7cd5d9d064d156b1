"""Whether a model thinks is read off its template; kept from it, it goes on with an answer."""

import pytest

from obliteratus.errors import UsageError
from obliteratus.events import Note
from obliteratus.models.chat import encode, reasoning_of
from obliteratus.models.reasoning import MARKERS, SWITCHES, detect
from obliteratus.testing.thinking import TEMPLATES
from obliteratus.testing.tiny import CHAT_TEMPLATE

SKIPPED = {
    "switched": "assistant\n<think>\n\n</think>\n\n",
    "in system": "assistant\n<think>\n\n</think>\n",
    "off by default": "assistant\n",
    "closed by its end": "assistant\n</think>",
    "budget": "assistant\n<seed:think>I answer at once.</seed:think>",
    "opened": "assistant\n<think>\n\n</think>\n\n",
    "opened, empty written": "assistant\n<think>\n\n</think>\n",
    "stripped": "assistant\n<think>\n\n</think>\n\n",
    "bracketed": "assistant\n[THINK][/THINK]",
    "channels": "assistant<|channel|>final<|message|>",
    "unknown markers": "assistant\n(no pondering)",
}
THINKING = {
    "switched": "assistant\n",
    "in system": "assistant\n",
    "off by default": "assistant\n",
    "closed by its end": "assistant\n<think>",
    "budget": "assistant\n",
    "opened": "assistant\n<think>\n",
    "opened, empty written": "assistant\n<think>\n",
    "stripped": "assistant\n",
    "bracketed": "assistant\n",
    "channels": "assistant",
}
PROSE = (
    "{{ bos_token }}<|im_start|>system\nThink about reasoning, thinking and your thoughts; "
    "enable_thinking, and close what you open.<|im_end|>\n" + CHAT_TEMPLATE
)
COMMENTED = "{# strips <think> and </think>, reads enable_thinking #}" + CHAT_TEMPLATE
READ_IN_VAIN = "{% set unused = [thinking, enable_thinking] %}" + CHAT_TEMPLATE


def ends(model, thinks: bool) -> str:
    """What stands behind the user's text."""
    (ids,) = encode(model, ["Who?"], thinks=thinks).ids
    return model.tokenizer.decode(ids).rpartition("Who?")[2]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_model_kept_from_thinking_answers_next(with_template, kind):
    model = with_template(TEMPLATES[kind])
    assert ends(model, thinks=False).endswith(SKIPPED[kind])


@pytest.mark.parametrize("kind", THINKING)
def test_a_model_that_is_to_think_is_let(with_template, kind):
    model = with_template(TEMPLATES[kind])
    assert ends(model, thinks=True).endswith(THINKING[kind])
    encoded = encode(model, ["Who?"], thinks=True)
    assert encoded.thinks
    assert encoded.opens_thought == THINKING[kind].rstrip().endswith("<think>")
    assert not encode(model, ["Who?"]).opens_thought


def test_a_template_that_thinks_when_asked_is_asked(with_template):
    model = with_template(TEMPLATES["off by default"])
    texts = [
        model.tokenizer.decode(encode(model, ["Who?"], thinks=thinks).ids[0])
        for thinks in (False, True)
    ]
    assert ["Thoughts go between" in text for text in texts] == [False, True]


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("switched", "enable_thinking=false"),
        ("in system", "enable_thinking=false"),
        ("off by default", "thinking=false"),
        ("budget", "thinking_budget=0"),
        ("opened", "an empty thought behind the generation prompt"),
        ("channels", "an empty thought behind the generation prompt"),
    ],
)
def test_what_keeps_it_from_thinking_is_said_once(with_template, events, kind, how):
    model = with_template(TEMPLATES[kind])
    for _ in range(2):
        encode(model, ["Who?"])
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert f"skipped ({how})" in note
    found = reasoning_of(model)
    assert found is not None
    assert found.how_skipped == how


def test_two_notes_on_one_model_are_both_said(with_template, events):
    template = "{{ strftime_now('%Y') }}" + TEMPLATES["opened"]
    encode(with_template(template), ["Who?"])
    notes = [event.text for event in events if isinstance(event, Note)]
    assert ["today's date" in note for note in notes] == [False, True]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PROSE, COMMENTED, READ_IN_VAIN])
@pytest.mark.parametrize("thinks", [False, True])
def test_words_about_thinking_are_no_thoughts(with_template, events, template, thinks):
    """Prose, comments and variables that change nothing: the tokens are the template's own."""
    model = with_template(template)
    encoded = encode(model, ["Who?", "What do you think?"], thinks=thinks)
    chats = [[{"role": "user", "content": text}] for text in ("Who?", "What do you think?")]
    rows = model.tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert encoded.ids == tuple(tuple(row) for row in rows)
    assert encoded.reasoning is None
    assert not encoded.thinks
    assert events == []


def test_the_template_tokens_behind_a_prompt_include_the_empty_thought(with_template):
    model = with_template(TEMPLATES["opened"])
    plain, closed = encode(with_template(CHAT_TEMPLATE), ["Who?"]), encode(model, ["Who?"])
    added = len(model.tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"])
    assert closed.post_instruction == plain.post_instruction + added


def test_a_system_prompt_stays_where_it_is(with_template):
    model = with_template(TEMPLATES["switched"])
    encoded = encode(model, ["Who?"], system="Be brief.")
    text = model.tokenizer.decode(encoded.ids[0])
    assert "system\nBe brief." in text
    assert text.endswith(SKIPPED["switched"])


def test_thoughts_whose_end_is_unknown_cannot_be_scored(with_template):
    model = with_template(TEMPLATES["unknown markers"])
    found = reasoning_of(model)
    assert found is not None
    assert found.markers is None
    with pytest.raises(UsageError, match=r"enable_thinking.*verify\.thoughts=skip"):
        encode(model, ["Who?"], thinks=True)


def test_the_markers_that_a_template_writes_win_over_those_it_only_knows():
    template = "{{ '</think>' if false }}<|im_start|>x\n{% if add %}<thought>{% endif %}</thought>"
    found = detect(template, lambda answer, _: f"<thought>{answer or ''}")
    assert found is not None
    assert found.markers is not None
    assert found.markers.opening == "<thought>"


def test_no_marker_ends_another_one():
    """A closing marker is found in a text; none may be found inside another."""
    closings = [each.closing for each in MARKERS]
    assert not [(a, b) for a in closings for b in closings if a != b and a in b]
    assert len({each.name for each in SWITCHES}) == len(SWITCHES)
