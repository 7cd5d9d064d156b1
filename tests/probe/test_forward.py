import contextlib
from dataclasses import replace

import psutil
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from obliteratus.errors import MeasurementError
from obliteratus.events import Note, Progress, listening
from obliteratus.models.anatomy import Anatomy
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.plumbing import block, capture, hooked
from obliteratus.probe.forward import automatic_batch_tokens, forward_batches, last_hidden
from obliteratus.probe.prefix import can_share_prefix, shared_prefix
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model

PROMPTS = ("Why?", "How do I kill a stray process?", "Tell me of the sea.", "7 + 5", "Say hello!")


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def backbone_of(model):
    return model.module.get_submodule(model.anatomy.backbone)


def layers_of(model):
    return ("embedding", *range(model.anatomy.n_layers))


def batched_streams(model, encoded, batch_tokens):
    """Layer and prompt -> the stream at the tokens after the prefix, as forward_batches runs it."""
    found = {}
    with capture(model, layers_of(model)) as stream:
        for batch, hidden in forward_batches(
            model, encoded, batch_tokens=batch_tokens, task="test"
        ):
            for place, row in enumerate(batch.rows):
                length = int(batch.lengths[place])
                assert length + batch.prefix == len(encoded.ids[row])
                for layer in layers_of(model):
                    found[layer, row] = stream[layer][place, :length]
                found["final norm", row] = hidden[place, :length]
    return found


def streams_one_by_one(model, encoded, prefix):
    """The same, each prompt whole and alone, without cache or padding."""
    found = {}
    with capture(model, layers_of(model)) as stream:
        for row, ids in enumerate(encoded.ids):
            hidden = backbone_of(model)(torch.tensor([ids]), use_cache=False).last_hidden_state
            for layer in layers_of(model):
                found[layer, row] = stream[layer][0, prefix:]
            found["final norm", row] = hidden[0, prefix:]
    return found


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
def test_prefix_and_padding_change_nothing_at_any_layer(model_type, dtype, tolerance):
    model = tiny_model(model_type, dtype=dtype)
    encoded = encode(model, PROMPTS, system="Be terse.")
    assert encoded.shared_prefix > 8  # longer than the sliding windows of the tiny models
    with ExactFloat64():
        found = batched_streams(model, encoded, batch_tokens=100)
        prefix = encoded.shared_prefix if can_share_prefix(model) else 0
        expected = streams_one_by_one(model, encoded, prefix)
    assert found.keys() == expected.keys()
    assert max(relative(found[key], expected[key]) for key in found) < tolerance


def test_a_prefix_that_is_not_shared_would_show():
    model = tiny_model("llama")
    ids = ((5, 6, 7, 8, 9), (5, 6, 70, 8, 9))
    wrong = Encoded(ids, shared_prefix=3, post_instruction=0, has_template=False)
    expected = streams_one_by_one(model, wrong, 3)
    found = batched_streams(model, wrong, batch_tokens=100)
    assert relative(found[2, 0], expected[2, 0]) < 1e-6
    assert relative(found[2, 1], expected[2, 1]) > 1e-2


def test_prefix_tokens_run_once():
    model = tiny_model("llama")
    encoded = encode(model, PROMPTS)
    shapes = []
    hook = backbone_of(model).register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    with hooked([hook]):
        last_hidden(model, encoded, batch_tokens=100, task="test")
    longest = max(map(len, encoded.ids)) - encoded.shared_prefix
    assert shapes[0] == (1, encoded.shared_prefix)
    assert len(shapes) > 2
    assert all(width <= longest for _, width in shapes[1:])


def test_the_prefix_sees_the_hooks_that_are_active():
    model = tiny_model("llama")
    encoded = encode(model, PROMPTS)
    plain = last_hidden(model, encoded, task="test")

    def shift(_module, _args, output):
        return output + 0.5

    with hooked([block(model, 0).register_forward_hook(shift)]):
        found = last_hidden(model, encoded, task="test")
        expected = torch.stack(
            [
                backbone_of(model)(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
                for ids in encoded.ids
            ]
        )
    assert relative(found, expected) < 1e-6
    assert relative(plain, expected) > 1e-2


@pytest.mark.parametrize("batch_tokens", [1, 30, 64, 0])
def test_last_hidden_is_in_prompt_order_for_every_batch_size(batch_tokens):
    model = tiny_model("qwen3")
    encoded = encode(model, PROMPTS)
    found = last_hidden(model, encoded, batch_tokens=batch_tokens, task="test")
    expected = streams_one_by_one(model, encoded, 0)
    for row in range(len(PROMPTS)):
        assert relative(found[row], expected["final norm", row][-1]) < 1e-6


def test_one_prompt_alone_runs_without_a_prefix():
    model = tiny_model("llama")
    encoded = encode(model, PROMPTS[:1])
    (found,) = forward_batches(model, encoded, task="test")
    assert found[0].prefix == 0


def test_batches_are_bounded_and_go_from_long_to_short():
    model = tiny_model("llama")
    encoded = encode(model, [*PROMPTS] * 6)
    sizes = []
    for batch, _ in forward_batches(model, encoded, batch_tokens=120, task="test"):
        sizes.append(tuple(batch.input_ids.shape))
        assert batch.input_ids.numel() <= 120
    assert [width for _, width in sizes] == sorted((width for _, width in sizes), reverse=True)
    assert sum(rows for rows, _ in sizes) == 30
    assert len(sizes) > 3


def test_progress_counts_prompts_up_to_the_total():
    model = tiny_model("llama")
    events = []
    with listening(events.append):
        last_hidden(model, encode(model, PROMPTS), batch_tokens=60, task="a task")
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == sorted({event.done for event in progress})
    assert (progress[-1].done, progress[-1].total) == (len(PROMPTS), len(PROMPTS))
    assert {(event.task, event.unit) for event in progress} == {("a task", "prompts")}


@contextlib.contextmanager
def failing(model, error, most_tokens):
    def fail(_module, _args, kwargs):
        if kwargs["input_ids"].numel() > most_tokens:
            raise error

    with hooked([backbone_of(model).register_forward_pre_hook(fail, with_kwargs=True)]):
        yield


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_with_a_note(error):
    model = tiny_model("llama")
    encoded = encode(model, [*PROMPTS] * 4)
    expected = last_hidden(model, encoded, task="test")
    events = []
    with failing(model, error, most_tokens=200), listening(events.append):
        found = last_hidden(model, encoded, batch_tokens=10_000, task="test")
    assert relative(found, expected) < 1e-6
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [note.rpartition("going on with ")[2] for note in notes] == [
        "10 rows.",
        "5 rows.",
        "2 rows.",
    ]


def test_one_prompt_that_does_not_fit_is_an_error():
    model = tiny_model("llama")
    encoded = encode(model, PROMPTS[:1])
    with (
        failing(model, OUT_OF_MEMORY[0], most_tokens=0),
        pytest.raises(MeasurementError, match=r"a single prompt of \d+ tokens.*--dtype bfloat16"),
    ):
        last_hidden(model, encoded, task="test")


def test_other_failures_are_not_taken_for_memory():
    model = tiny_model("llama")
    encoded = encode(model, PROMPTS)
    with (
        failing(model, RuntimeError("shape mismatch"), most_tokens=1),
        pytest.raises(RuntimeError, match="shape mismatch"),
    ):
        last_hidden(model, encoded, task="test")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((), r"no prompts to run"),
        (((1, 2), ()), r"prompt 1 has no tokens"),
        (((1, 2), (1,) * 600), r"prompt 1 .* has 600 tokens and the model takes at most 512"),
    ],
)
def test_what_cannot_be_run_is_named(ids, message):
    encoded = Encoded(ids, shared_prefix=0, post_instruction=0, has_template=False)
    with pytest.raises(MeasurementError, match=message):
        last_hidden(tiny_model("gpt2"), encoded, task="test")


@pytest.fixture(scope="module")
def recurrent_model():
    like = tiny_model("llama", dtype=torch.float32)
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4)
    torch.manual_seed(0)
    anatomy = Anatomy(
        family="mamba",
        model_type="mamba",
        d_model=16,
        backbone="backbone",
        blocks=("backbone.layers.0", "backbone.layers.1"),
        final_norm="backbone.norm_f",
        head="lm_head",
        sites=(),
    )
    module = MambaForCausalLM(config).eval().requires_grad_(False)
    return replace(like, module=module, anatomy=anatomy, dtype=torch.float32)


def test_a_recurrent_model_runs_whole_prompts_and_says_so(recurrent_model):
    encoded = encode(recurrent_model, PROMPTS)
    assert encoded.shared_prefix
    assert not can_share_prefix(recurrent_model)
    events = []
    with listening(events.append):
        found = last_hidden(recurrent_model, encoded, batch_tokens=200, task="test")
    assert [event.text for event in events if isinstance(event, Note)] == [
        f"mamba keeps a recurrent state, so the {encoded.shared_prefix} tokens that all prompts "
        "share are run again for every prompt."
    ]
    expected = streams_one_by_one(recurrent_model, encoded, 0)
    for row in range(len(PROMPTS)):
        assert relative(found[row], expected["final norm", row][-1]) < 1e-5
    with pytest.raises(MeasurementError, match="cannot be shared"):
        shared_prefix(recurrent_model, (1, 2))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_model_without_a_recurrent_state_shares_its_prefix(model_type):
    model = tiny_model(model_type)
    is_recurrent = any(site.component == "state_space" for site in model.anatomy.sites)
    keeps_more = {"zaya", "longcat_flash"}  # a convolution's state; two caches in a block
    cannot = is_recurrent or model.anatomy.cache != "shared" or model_type in keeps_more
    assert can_share_prefix(model) is not cannot


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_growing_cache_continues_as_the_whole_sequence_does(model_type):
    model = tiny_model(model_type)
    prefix, rest = (1, 20, 30, 40, 50, 60, 70, 80, 90, 100), ((7, 8, 9), (10, 11, 12))
    cache = shared_prefix(model, prefix).growing_cache(rows=2)
    for step in range(3):
        tokens = torch.tensor([[row[step]] for row in rest])
        found = backbone_of(model)(tokens, past_key_values=cache, use_cache=True)
    for row, ids in enumerate(rest):
        whole = backbone_of(model)(torch.tensor([prefix + ids]), use_cache=False)
        expected = whole.last_hidden_state[0, -1]
        assert relative(found.last_hidden_state[row, -1], expected) < 1e-6


def test_several_streams_and_unequal_mlps_take_their_room(monkeypatch):
    class Memory:
        available = 4 * 8 * 200_000  # a quarter of it holds 200 000 numbers of float64

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    model = tiny_model("gemma3n_text")
    model.module.config.intermediate_size = [24, 40, 24, 24]
    per_token = (12 * 4 + 4) * 16 + 4 * 40  # four streams at a block's peak, four layers captured
    assert automatic_batch_tokens(model) == 200_000 // per_token


def test_automatic_batches_shrink_with_free_memory(monkeypatch):
    model = tiny_model("llama")
    roomy = automatic_batch_tokens(model)

    class Memory:
        available = 100_000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert 1 <= automatic_batch_tokens(model) < roomy
