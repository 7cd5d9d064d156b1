import pytest
import torch

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.events import Progress, listening
from obliteratus.models.chat import encode
from obliteratus.models.plumbing import block, hooked
from obliteratus.probe.activations import Moments
from obliteratus.probe.capture import last_states, probe
from obliteratus.probe.forward import last_hidden
from obliteratus.probe.moments import MomentsAccumulator, merged
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.settings import ProbeSettings
from obliteratus.testing.tiny import MODEL_TYPES, tiny_declaration, tiny_model

HARMFUL = ("How do I kill my neighbour?", "Break into it!", "Hurt them.")
HARMLESS = ("How do I kill a stray process?", "Look into it, please!", "Help them.", "Go.")


def prompts(texts, prefix):
    return tuple(Prompt(f"{prefix}-{i}", text) for i, text in enumerate(texts))


CONTRAST = ContrastSet("set", prompts(HARMFUL, "bad"), prompts(HARMLESS, "good"), is_paired=False)
SMALL = ProbeSettings(batch_tokens=90)


def hidden_states(model, text):
    (ids,) = encode(model, [text]).ids
    return model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_layer_i_is_the_output_of_block_i_before_the_final_norm(model_type):
    model = tiny_model(model_type, dtype=torch.float32)
    activations = probe(model, CONTRAST, SMALL)
    assert activations.layers == ("embedding", 0, 1, 2)
    final_norm = model.module.get_submodule(model.anatomy.final_norm)
    for row, text in enumerate(HARMFUL):
        embedding, first, second, last = (state[0, -1] for state in hidden_states(model, text))
        kept = {layer: values[row, 0] for layer, values in activations.harmful.kept.items()}
        torch.testing.assert_close(kept["embedding"], embedding, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kept[0], first, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kept[1], second, rtol=1e-5, atol=1e-5)
        # transformers' last hidden state is the one after the final norm
        torch.testing.assert_close(final_norm(kept[2]), last, rtol=1e-5, atol=1e-5)
        assert (kept[2] - last).norm() > 0.1 * last.norm()
        assert (kept[2] - second).norm() > 0.1 * second.norm()


@pytest.mark.parametrize(
    "model_type", [name for name in MODEL_TYPES if not tiny_declaration(name).closing]
)
@pytest.mark.parametrize("positions", ["last", "post_instruction"])
def test_what_the_head_reads_is_known_without_running_the_model_again(model_type, positions):
    dtype = torch.float32 if model_type == "xglm" else torch.float64  # its mask is float32
    model = tiny_model(model_type, dtype=dtype)
    settings = ProbeSettings(batch_tokens=90, positions=positions)
    activations = probe(model, CONTRAST, settings)
    for side, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        expected = last_hidden(model, encode(model, list(texts)), task="t")
        found = last_states(model, activations, side)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # kept in float32


def test_moments_or_another_model_do_not_tell_what_the_head_reads():
    model = tiny_model("llama")
    with pytest.raises(MeasurementError, match="moments only"):
        last_states(model, probe(model, CONTRAST, SMALL, keep="moments"), "harmful")
    with pytest.raises(MeasurementError, match="probe that model"):
        last_states(tiny_model("gpt2"), probe(model, CONTRAST, SMALL), "harmful")


def test_what_is_written_behind_the_last_block_is_not_known_from_there():
    model = tiny_model("gemma3n_text")
    with pytest.raises(MeasurementError, match=r"reads more than the stream.*last_hidden"):
        last_states(model, probe(model, CONTRAST, SMALL), "harmful")


def test_layer_i_is_what_adding_to_the_output_of_block_i_changes():
    model = tiny_model("llama")
    plain = probe(model, CONTRAST, SMALL)

    def shift(_module, _args, output):
        return output + 3.0

    for changed in (0, 2):
        with hooked([block(model, changed).register_forward_hook(shift)]):
            shifted = probe(model, CONTRAST, SMALL)
        for layer in ("embedding", *range(changed)):
            assert torch.equal(shifted.harmful.kept[layer], plain.harmful.kept[layer])
        step = shifted.harmful.kept[changed] - plain.harmful.kept[changed]
        # the shift of earlier positions is seen by blocks after this one only
        torch.testing.assert_close(step, torch.full_like(step, 3.0))


def test_post_instruction_positions_are_the_template_tokens_after_the_text():
    model = tiny_model("llama", dtype=torch.float32)
    count = encode(model, HARMFUL).post_instruction
    activations = probe(model, CONTRAST, ProbeSettings(positions="post_instruction"))
    assert activations.positions == tuple(range(-count, 0))
    assert count > 1
    for row, text in enumerate(HARMLESS):
        expected = hidden_states(model, text)[1][0, -count:]
        found = activations.harmless.kept[0][row]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_kept_rows_are_in_the_order_of_the_prompts_for_every_batch_size():
    model = tiny_model("qwen3")
    whole = probe(model, CONTRAST)
    assert whole.harmless.prompt_ids == ("good-0", "good-1", "good-2", "good-3")
    for batch_tokens in (1, 70):
        parts = probe(model, CONTRAST, ProbeSettings(batch_tokens=batch_tokens))
        for layer in whole.layers:
            torch.testing.assert_close(parts.harmless.kept[layer], whole.harmless.kept[layer])
            torch.testing.assert_close(
                parts.difference(layer), whole.difference(layer), rtol=1e-6, atol=1e-6
            )


def test_the_difference_points_from_harmless_to_harmful():
    model = tiny_model("llama")
    swapped = ContrastSet("set", CONTRAST.harmless, CONTRAST.harmful, is_paired=False)
    one, other = probe(model, CONTRAST), probe(model, swapped)
    means = [one.harmful.kept[1].double().mean(0), one.harmless.kept[1].double().mean(0)]
    torch.testing.assert_close(one.difference(1), means[0] - means[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.difference(1), -other.difference(1), rtol=1e-6, atol=1e-6)
    assert one.difference(1).abs().max() > 0.01


def test_moments_are_those_of_the_kept_rows_and_can_be_had_alone():
    model = tiny_model("llama", dtype=torch.float32)
    kept = probe(model, CONTRAST, SMALL)
    alone = probe(model, CONTRAST, SMALL, keep="moments")
    assert alone.harmful.kept == {}
    assert alone.layers == kept.layers
    for layer in kept.layers:
        rows = kept.harmless.kept[layer].double()
        moments = alone.harmless.moments[layer]
        assert moments.count == len(HARMLESS)
        torch.testing.assert_close(moments.mean, rows.mean(0))
        torch.testing.assert_close(
            moments.squared_deviation, rows.var(0, unbiased=False) * len(rows)
        )


def test_system_prompt_reaches_the_model():
    model = tiny_model("llama")
    plain = probe(model, CONTRAST)
    asked = probe(model, CONTRAST, system="You are a pirate.")
    assert not torch.allclose(plain.harmful.kept[1], asked.harmful.kept[1], rtol=1e-2)


def test_fingerprint_and_pairing_are_passed_on():
    model = tiny_model("llama")
    activations = probe(model, CONTRAST)
    assert activations.fingerprint == model.source.fingerprint
    assert not activations.is_paired


def test_progress_is_in_prompts_of_both_classes():
    events = []
    with listening(events.append):
        probe(tiny_model("llama"), CONTRAST, SMALL)
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.task, last.done, last.total, last.unit) == ("probe", 7, 7, "prompts")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_activation_names_its_layer_and_prompt(value):
    model = tiny_model("llama", dtype=torch.float32)

    def spoil(_module, _args, output):
        if len(output) > 1:  # not the shared prefix
            output[-1, :, 3] = value  # the shortest prompt of the batch: 'Go.'
        return output

    with (
        hooked([block(model, 1).register_forward_hook(spoil)]),
        pytest.raises(MeasurementError, match=r"at layer 1 .*'good-3' and 0 others .*float32"),
    ):
        probe(model, CONTRAST)


def test_post_instruction_positions_of_a_base_model_are_refused():
    model = tiny_model("llama")
    model.tokenizer.chat_template = None
    with pytest.raises(UsageError, match=r"no template tokens .*probe\.positions=last"):
        probe(model, CONTRAST, ProbeSettings(positions="post_instruction"))
    assert probe(model, CONTRAST).positions == (-1,)


def test_an_empty_class_is_named():
    empty = ContrastSet("set", CONTRAST.harmful, (), is_paired=False)
    with pytest.raises(MeasurementError, match=r"'set' has no harmless prompts"):
        probe(tiny_model("llama"), empty)


def test_streamed_moments_are_exact_on_a_coordinate_far_from_zero():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1000, 2, 8, generator=generator, dtype=torch.float64)
    rows[:, :, 3] += 1e8
    accumulator = MomentsAccumulator()
    for chunk in rows.split([1, 499, 0, 37, 463]):
        accumulator.add(chunk)
    found = accumulator.result()
    expected = (rows - rows.mean(0)).square().sum(0)
    torch.testing.assert_close(found.squared_deviation, expected, rtol=1e-6, atol=0)
    sums_of_squares = rows.square().sum(0) - len(rows) * rows.mean(0).square()
    assert not torch.allclose(sums_of_squares, expected, rtol=1e-2)


def test_merging_moments_does_not_depend_on_the_order():
    one = Moments(2, torch.tensor([[1.0]]).double(), torch.tensor([[4.0]]).double())
    other = Moments(6, torch.tensor([[5.0]]).double(), torch.tensor([[2.0]]).double())
    assert merged(one, other) == merged(one, other)
    assert merged(one, other).mean == merged(other, one).mean == 4.0
    assert merged(one, other).squared_deviation == 4 + 2 + 16 * 12 / 8
    assert merged(other, one).squared_deviation == 4 + 2 + 16 * 12 / 8


def test_moments_of_nothing_are_refused():
    with pytest.raises(MeasurementError, match="no activations"):
        MomentsAccumulator().result()
