import functools
from dataclasses import replace

import pytest
import torch

from obliteratus.errors import MeasurementError, UnsupportedArchitectureError
from obliteratus.events import Event, Progress, listening
from obliteratus.measure import answer_rows, generation
from obliteratus.measure.generation import (
    Completion,
    generate,
    generation_deviations,
    stop_tokens,
)
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model

FAMILIES = ("llama", "gpt2", "gemma2", "gemma3_text", "mixtral")
PROMPTS = ("Hi", "What is the time?", "Hi", "A much longer question, about nothing at all.", "Why?")
NEW_TOKENS = 12


def one_by_one(
    model: LoadedModel, encoded: Encoded, max_new_tokens: int = NEW_TOKENS
) -> list[tuple[int, ...]]:
    """The reference: transformers' own greedy search, one unpadded prompt at a time."""
    found = []
    for ids in encoded.ids:
        tokens = torch.tensor([ids])
        output = model.module.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=0,
        )
        found.append(tuple(output[0, len(ids) :].tolist()))
    return found


def talkative(family: str) -> LoadedModel:
    """A tiny model with a head of its own: with a tied one it repeats its last token for ever."""
    model = tiny_model(family, seed=2)
    head = model.module.get_submodule(model.anatomy.head)
    noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(5))
    head.weight = torch.nn.Parameter(noise.double(), requires_grad=False)
    return model


def stopping_early(model: LoadedModel, encoded: Encoded) -> None:
    """Make a token that the model does write its stop token, so that rows end at many steps."""
    model.module.generation_config.eos_token_id = None
    written = one_by_one(model, encoded)

    def lengths(token: int) -> set[int]:
        return {ids.index(token) if token in ids else NEW_TOKENS for ids in written}

    stop = max(sorted({token for ids in written for token in ids}), key=lambda t: len(lengths(t)))
    model.module.generation_config.eos_token_id = [stop, stop]


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_equal_those_of_transformers_one_by_one(family: str) -> None:
    model = talkative(family)
    encoded = encode(model, PROMPTS)
    assert encoded.shared_prefix > 0
    expected = one_by_one(model, encoded)
    assert len(set(expected)) > 2
    found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert [completion.token_ids for completion in found] == expected


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_architecture_says_what_transformers_makes_it_say(model_type: str) -> None:
    model = talkative(model_type)
    encoded = encode(model, PROMPTS)
    with ExactFloat64():
        found = generate(model, encoded, max_new_tokens=6, task="t")
        assert [each.token_ids for each in found] == one_by_one(model, encoded, 6)


@pytest.mark.parametrize("fewest", [1, 3, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_stop_at_different_steps_leave_the_others_unchanged(
    family: str, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all, some or none of the finished rows leave their batch."""
    monkeypatch.setattr(generation, "FEWEST_CPU_ROWS", fewest)
    model = talkative(family)
    encoded = encode(model, PROMPTS)
    stopping_early(model, encoded)
    found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert [completion.token_ids for completion in found] == one_by_one(model, encoded)
    assert len({len(completion.token_ids) for completion in found}) > 1
    for completion in found:
        assert completion.is_finished == (completion.token_ids[-1] in stop_tokens(model))


@pytest.mark.parametrize("family", ["minimax", "openai-gpt", "zaya", "longcat_flash", "mamba2"])
def test_rows_leave_also_where_a_model_keeps_something_else(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of its own, none, a convolution's state: prompts of one length share a batch."""
    monkeypatch.setattr(generation, "FEWEST_CPU_ROWS", 1)
    model = talkative(family)
    encoded = encode(model, ("What is it?", "Who are you", "Why me now?", "Tell me why"))
    assert len({len(ids) for ids in encoded.ids}) == 1
    with ExactFloat64():
        stopping_early(model, encoded)
        found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
        assert [completion.token_ids for completion in found] == one_by_one(model, encoded)
    assert len({len(completion.token_ids) for completion in found}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_text_without_a_shared_prefix_is_padded_correctly(family: str) -> None:
    model = talkative(family)
    ids = tuple(tuple(model.tokenizer(text)["input_ids"][1:]) for text in PROMPTS)
    encoded = Encoded(ids, shared_prefix=0, post_instruction=0, has_template=False)
    found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert [completion.token_ids for completion in found] == one_by_one(model, encoded)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_batch_size_does_not_change_completions(rows: int) -> None:
    model = talkative("gemma2")
    encoded = encode(model, PROMPTS)
    whole = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t", batch_rows=rows) == whole


def test_prompts_run_in_several_pieces_share_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_rows, "automatic_batch_tokens", lambda _: 1)
    model = talkative("gemma2")
    encoded = encode(model, PROMPTS)
    found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert [completion.token_ids for completion in found] == one_by_one(model, encoded)


def test_a_row_much_shorter_than_the_longest_reaches_back_past_the_whole_prefix() -> None:
    model = talkative("gemma3_text")
    encoded = encode(model, ("x", "y" * 100))
    assert encoded.shared_prefix < 90
    found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert [completion.token_ids for completion in found] == one_by_one(model, encoded)


def test_hooks_active_during_generation_act_on_the_prefix_too() -> None:
    model = talkative("llama")
    encoded = encode(model, PROMPTS)
    plain = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    block = model.module.get_submodule(model.anatomy.blocks[0])
    handle = block.register_forward_pre_hook(lambda _, args: (args[0] + 1.0, *args[1:]))
    try:
        hooked = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
        assert [completion.token_ids for completion in hooked] == one_by_one(model, encoded)
    finally:
        handle.remove()
    assert hooked != plain


def test_text_is_decoded_without_special_tokens() -> None:
    model = talkative("llama")
    encoded = encode(model, PROMPTS)
    stopping_early(model, encoded)
    for completion in generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t"):
        expected = model.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert completion.text == expected
        assert isinstance(completion, Completion)


def test_progress_counts_every_prompt_once() -> None:
    model = talkative("llama")
    encoded = encode(model, PROMPTS)
    events: list[Event] = []
    with listening(events.append):
        generate(model, encoded, max_new_tokens=3, task="answers", batch_rows=2)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == [1, 2, 3, 4, 5]
    assert {(event.task, event.total, event.unit) for event in progress} == {
        ("answers", 5, "prompts")
    }


def test_each_answer_is_told_of_once_while_others_are_being_written() -> None:
    model = talkative("llama")
    encoded = encode(model, PROMPTS)
    stopping_early(model, encoded)
    told: list[tuple[int, Completion]] = []
    seen: list[int] = []

    def finished(row: int, completion: Completion) -> None:
        told.append((row, completion))

    with listening(lambda _: seen.append(len(told))):
        found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t", finished=finished)
    assert dict(told) == dict(enumerate(found))
    assert len(told) == len(found)
    assert seen == [1, 2, 3, 4, 5]
    lengths = [len(completion.token_ids) for _, completion in told]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talkative("llama")
    encoded = encode(model, PROMPTS)
    whole = generate(model, encoded, max_new_tokens=4, task="t")
    backbone = type(model.module.get_submodule(model.anatomy.backbone))
    forward = backbone.forward

    @functools.wraps(forward)
    def fails_with_many_rows(self: object, input_ids: torch.Tensor, **rest: object) -> object:
        if input_ids.shape[0] > 2:
            raise torch.OutOfMemoryError
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(backbone, "forward", fails_with_many_rows)
    assert generate(model, encoded, max_new_tokens=4, task="t") == whole


def test_memory_that_fits_no_prompt_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talkative("llama")
    encoded = replace(encode(model, PROMPTS), shared_prefix=0)

    backbone = type(model.module.get_submodule(model.anatomy.backbone))
    forward = backbone.forward

    @functools.wraps(forward)
    def fails_on_prompts(self: object, input_ids: torch.Tensor, **rest: object) -> object:
        if input_ids.shape[1] > 2:
            raise torch.OutOfMemoryError
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(backbone, "forward", fails_on_prompts)
    with pytest.raises(MeasurementError, match="single prompt"):
        generate(model, encoded, max_new_tokens=4, task="t")


def test_a_repetition_penalty_is_left_out_and_said() -> None:
    model = talkative("llama")
    encoded = encode(model, PROMPTS)
    plain = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert generation_deviations(model) == ()
    model.module.generation_config.repetition_penalty = 3.0
    assert generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t") == plain
    assert [deviation.asked for deviation in generation_deviations(model)] == [
        "repetition_penalty = 3.0"
    ]


def test_nothing_to_generate_is_an_error() -> None:
    model = talkative("llama")
    with pytest.raises(MeasurementError, match="0 prompts"):
        generate(model, Encoded((), 0, 0, True), max_new_tokens=3, task="t")
    with pytest.raises(MeasurementError, match="max_new_tokens"):
        generate(model, encode(model, PROMPTS), max_new_tokens=0, task="t")


def test_an_answer_that_does_not_fit_into_the_context_is_an_error() -> None:
    model = tiny_model("gpt2")
    encoded = encode(model, PROMPTS)
    longest = max(len(ids) for ids in encoded.ids)
    with pytest.raises(MeasurementError, match=rf"prompt 3 .* {longest} tokens; with 500 new"):
        generate(model, encoded, max_new_tokens=500, task="t")


def test_a_model_whose_state_cannot_be_moved_is_run_without_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = talkative("gemma2")
    encoded = encode(model, (*PROMPTS, "No"))
    stopping_early(model, encoded)
    expected = one_by_one(model, encoded)
    for module in (generation, answer_rows):
        monkeypatch.setattr(module, "can_share_prefix", lambda _: False)

    def no_move(*_: object) -> None:
        raise AssertionError("keys and values were moved")

    monkeypatch.setattr(answer_rows, "answer_cache", no_move)
    found = generate(model, encoded, max_new_tokens=NEW_TOKENS, task="t")
    assert [completion.token_ids for completion in found] == expected


def test_nan_logits_are_an_error() -> None:
    model = talkative("llama")
    encoded = encode(model, PROMPTS)
    model.module.get_submodule(model.anatomy.head).weight.data[:] = torch.nan
    with pytest.raises(MeasurementError, match="NaN"):
        generate(model, encoded, max_new_tokens=3, task="t")


def test_a_backbone_without_a_known_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(answer_rows, "CACHE_NAMES", ("some_other_cache",))
    with pytest.raises(UnsupportedArchitectureError, match="takes none of some_other_cache"):
        generate(model, encode(model, ["Hello"]), max_new_tokens=2, task="t")
