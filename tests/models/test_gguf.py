"""A .gguf file becomes an ordinary folder, once; a damaged one becomes a clear error."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from obliteratus.errors import ModelSourceError, UnsupportedArchitectureError
from obliteratus.events import DeviationRecorded, Note, Progress
from obliteratus.models.gguf import gguf_folder, gguf_license
from obliteratus.models.gguf_header import read_header
from obliteratus.store import sha256_of_file
from obliteratus.testing.tiny_gguf import TEMPLATE, TOKENS, tiny_gguf, tiny_llama


def write_gguf(path, module, **options):
    return tiny_gguf(path, module, kinds={"ffn_down": "Q8_0"}, **options)


@pytest.fixture(scope="module")
def module() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def path(tmp_path: Path, module) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", module)


def test_the_folder_holds_the_weights_tokenizer_and_template_of_the_file(
    path, module, store, events
):
    folder, sha256 = gguf_folder(path, store)
    assert sha256 == sha256_of_file(path)
    assert gguf_license(folder) == "mit"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.dtype == torch.float32
    for (name, got), want in zip(
        loaded.state_dict().items(), module.state_dict().values(), strict=True
    ):
        is_rounded = "down_proj" in name
        torch.testing.assert_close(
            got, want, rtol=0, atol=want.abs().max().item() / 127 * is_rounded
        )
        assert is_rounded != torch.equal(got, want)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("aab <|im_end|>")["input_ids"][0] == TOKENS.index("aa")
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert not hasattr(loaded.config, "quantization_config")
    assert "A tiny llama" not in (folder / "config.json").read_text()
    assert any("dequantising tiny.gguf" in e.text for e in events if isinstance(e, Note))
    assert any(e.unit == "tensors" and e.done == e.total for e in events if isinstance(e, Progress))


def test_the_conversion_is_done_once_and_found_by_content(path, store, events, tmp_path):
    first, _ = gguf_folder(path, store)
    events.clear()
    renamed = path.rename(tmp_path / "other.gguf")
    assert gguf_folder(renamed, store)[0] == first
    assert events == []


def test_nothing_is_printed(path, store, capfd):
    gguf_folder(path, store)
    assert capfd.readouterr() == ("", "")


def test_the_readers_of_the_libraries_are_put_back(path, store):
    from transformers import modeling_gguf_pytorch_utils as library

    before = library.tqdm, gguf.GGUFReader
    gguf_folder(path, store)
    assert (library.tqdm, gguf.GGUFReader) == before


def test_the_header_names_every_tensor_and_field(path, module):
    header = read_header(path)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(module.model.layers))
    expected = {names.get_name(name, (".weight",)) for name in module.state_dict()}
    assert set(header.tensors) == expected
    assert header.fields["general.architecture"] == "llama"
    assert header.fields["tokenizer.ggml.tokens"] == len(TOKENS)
    assert header.fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"PK\3\4" + data[4:], "does not begin with 'GGUF'"),
        (lambda data: data[:-1], r"is truncated: it has \d+ bytes and its tensors end at \d+"),
        (lambda data: data[:200], "header of .* is truncated or damaged"),
        (lambda data: data[:4], "header of .* is truncated or damaged"),
        (lambda data: data[:4] + b"\x09" + data[5:], "version 9"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "tensors and"),
    ],
)
def test_a_damaged_file_is_a_source_error(path, store, damage, why):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelSourceError, match=why):
        gguf_folder(path, store)
    assert not store.root.exists()


def test_one_part_of_several_is_refused(tmp_path, module, store):
    path = write_gguf(tmp_path / "part.gguf", module, extra={"split.count": 3})
    with pytest.raises(ModelSourceError, match=r"one of 3 parts.*--merge"):
        gguf_folder(path, store)


def test_a_tensor_that_is_not_there_is_not_made_up(tmp_path, module, store):
    path = write_gguf(tmp_path / "less.gguf", module, leave_out=("blk.1.ffn_up.weight",))
    with pytest.raises(
        ModelSourceError, match=r"lacks 1 of the model's tensors.*layers.1.mlp.up_proj"
    ):
        gguf_folder(path, store)
    assert list(store.root.glob("*")) == []


def test_an_architecture_that_transformers_cannot_read_is_unsupported(tmp_path, module, store):
    path = write_gguf(tmp_path / "new.gguf", module, architecture="grok")
    with pytest.raises(UnsupportedArchitectureError, match="grok is not supported yet"):
        gguf_folder(path, store)


def test_rotary_scaling_that_is_not_read_is_a_deviation(tmp_path, module, store, events):
    path = write_gguf(tmp_path / "rope.gguf", module, ones=("rope_freqs.weight",))
    for _ in ("converted", "found in the store"):
        events.clear()
        gguf_folder(path, store)
        (event,) = [event for event in events if isinstance(event, DeviationRecorded)]
        assert "rope_freqs.weight left out" in event.deviation.done
