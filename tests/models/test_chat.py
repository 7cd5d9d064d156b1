"""Prompts are encoded with the template once, and template tokens are told from the user's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from obliteratus.errors import ModelSourceError, PromptError, UsageError
from obliteratus.events import Note
from obliteratus.models.chat import PINNED_DATE, Encoded, encode
from obliteratus.testing.tiny import CHAT_TEMPLATE, tiny_model

PROMPTS = ("How do I kill a stray process?", "How do I bake bread?", "How?")
TRIMMING = (
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def decoded(model, encoded: Encoded, row: int) -> tuple[str, str, str]:
    """The three parts of a row as text: before, inside and after the user's text."""
    ids = encoded.ids[row]
    end = len(ids) - encoded.post_instruction
    parts = (ids[: encoded.shared_prefix], ids[encoded.shared_prefix : end], ids[end:])
    before, user, after = (model.tokenizer.decode(part) for part in parts)
    return before, user, after


def test_the_parts_are_the_template_the_prompt_and_the_template(model):
    encoded = encode(model, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert decoded(model, encoded, row) == (
            "<bos><|im_start|>user\n",
            prompt,
            "<|im_end|>\n<|im_start|>assistant\n",
        )
    assert encoded.has_template
    assert len(encoded) == 3


def test_there_is_one_bos(model):
    for row in encode(model, PROMPTS).ids:
        assert row.count(model.tokenizer.bos_token_id) == 1


def test_nothing_is_truncated(model):
    long = "word " * (model.tokenizer.model_max_length + 7)
    assert decoded(model, encode(model, [long]), 0)[1] == long


def test_words_that_all_prompts_share_are_not_template_tokens(model):
    one = encode(model, ["How do I"])
    same = encode(model, ["How do I go home?", "How do I go home?"])
    assert one.shared_prefix == same.shared_prefix
    assert one.post_instruction == same.post_instruction


def test_a_system_prompt_is_part_of_the_prefix(model):
    encoded = encode(model, PROMPTS, system="Be brief.")
    assert decoded(model, encoded, 2)[0] == (
        "<bos><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )


def test_an_empty_prompt_leaves_a_token_after_the_prefix(model):
    encoded = encode(model, ["", "Hi"])
    assert len(encoded.ids[0]) > encoded.shared_prefix
    assert decoded(model, encoded, 0)[1] == ""


def test_a_base_model_gets_the_plain_text_and_one_note(with_template, events):
    base = with_template(None)
    first, second = encode(base, PROMPTS), encode(base, PROMPTS)
    assert first == second
    assert not first.has_template
    assert (first.shared_prefix, first.post_instruction) == (0, 0)
    assert [base.tokenizer.decode(row) for row in first.ids] == [f"<bos>{p}" for p in PROMPTS]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(notes) == 1
    assert "base model" in notes[0]


def test_an_instruction_model_says_nothing(model, events):
    encode(model, PROMPTS)
    assert events == []


def test_a_base_model_refuses_a_system_prompt(with_template):
    with pytest.raises(UsageError, match=r"is a base model.*takes no system prompt"):
        encode(with_template(None), PROMPTS, system="Be brief.")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[-1]['content'] }}!", "leaves the system prompt out"),
    ],
)
def test_a_template_without_a_system_role_is_a_usage_error(with_template, template, why):
    with pytest.raises(UsageError, match=f"takes no system prompt: .*{why}"):
        encode(with_template(template), PROMPTS, system="Be brief.")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('tools only') }}", "fails on a single user turn: tools only"),
        ("{{ bos_token }}Hello", "leaves out the user's text"),
    ],
)
def test_a_broken_template_is_a_source_error(with_template, template, why):
    with pytest.raises(ModelSourceError, match=why):
        encode(with_template(template), PROMPTS)


def test_several_templates_without_a_default_are_a_source_error(with_template):
    with pytest.raises(ModelSourceError, match="cannot be chosen"):
        encode(with_template({"rag": CHAT_TEMPLATE, "tools": CHAT_TEMPLATE}), PROMPTS)


def test_no_prompts_are_a_prompt_error(model):
    with pytest.raises(PromptError, match="no prompts to encode"):
        encode(model, [])


def test_a_prompt_without_tokens_is_a_prompt_error(with_template):
    with pytest.raises(PromptError, match="prompt 1 encodes to no tokens: ''"):
        encode(with_template("{{ messages[0]['content'] }}"), ["Hi", ""])


def test_a_template_that_asks_for_a_date_gets_the_same_one_every_day(with_template, events):
    dated = "{% set today = strftime_now('%d') if not date_string is defined else date_string %}"
    model = with_template("{{ today }}".join([dated, CHAT_TEMPLATE]))
    assert PINNED_DATE in model.tokenizer.decode(encode(model, ["Hi"]).ids[0])
    assert events == []


def test_a_template_that_writes_today_is_reported(with_template, events):
    encode(with_template("{{ strftime_now('%Y') }}" + CHAT_TEMPLATE), ["Hi"])
    assert "today's date" in events[0].text


@pytest.fixture(scope="module")
def merging():
    """A model whose tokenizer merges the template's last newline with a following capital."""
    tokens = ["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊH", "ĊĊ", "?Ċ"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("?", "Ċ"), ("Ċ", "H"), ("Ċ", "Ċ")]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    model = tiny_model("llama")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        chat_template=TRIMMING,
        clean_up_tokenization_spaces=False,
    )
    object.__setattr__(model, "tokenizer", fast)
    return model


def test_tokens_merged_with_the_users_text_are_not_template_tokens(merging):
    encoded = encode(merging, ["Hello?", "hello"])
    assert decoded(merging, encoded, 0)[0] == "### user:"
    assert decoded(merging, encoded, 1)[0] == "### user:"
    assert decoded(merging, encoded, 0)[2] == "### assistant:\n"


def test_whitespace_that_the_template_strips_does_not_count(merging):
    padded, plain = encode(merging, ["  hello "]), encode(merging, ["hello"])
    assert padded == plain


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_prefix_and_suffix_are_common_and_never_the_users(merging, texts):
    encoded = encode(merging, texts)
    ids, prefix, suffix = encoded.ids, encoded.shared_prefix, encoded.post_instruction
    assert len({row[:prefix] for row in ids}) == 1
    assert len({row[len(row) - suffix :] for row in ids}) == 1
    assert "### user:\n".startswith(merging.tokenizer.decode(ids[0][:prefix]))
    assert "\n\n### assistant:\n".endswith(merging.tokenizer.decode(ids[0][len(ids[0]) - suffix :]))
    assert all(len(row) > prefix for row in ids)
    assert prefix != 1


def test_the_common_words_of_the_prompts_alone_would_be_longer(model):
    encoded = encode(model, PROMPTS)
    assert len({row[: encoded.shared_prefix + 3] for row in encoded.ids}) == 1
