"""A .gguf file becomes an ordinary folder, once; a damaged one becomes a clear error."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from obliteratus.errors import ModelSourceError, UnsupportedArchitectureError
from obliteratus.events import DeviationRecorded, Note, Progress
from obliteratus.models.gguf import gguf_folder, gguf_license
from obliteratus.models.gguf_header import read_header
from obliteratus.store import sha256_of_file

HEADS, KV_HEADS, WIDTH = 4, 2, 32
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
TOKENS = ["<unk>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "aa"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=64,
        )
    ).eval()


def gguf_name(name: str) -> str:
    name = re.sub(r"^model\.layers\.", "blk.", name)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def rotary_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The order in which GGUF files keep the rows of q and k."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, module: LlamaForCausalLM, *, arch="llama", extra=None, leave_out=()):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("A tiny llama")
    writer.add_string("general.license", "mit")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(TOKENS))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in (extra or {}).items():
        writer.add_uint16(key, value)
    for name, weight in module.state_dict().items():
        if gguf_name(name) in leave_out:
            continue
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        stored = (rotary_order(weight, heads) if heads else weight).numpy()
        if "ffn_down" in gguf_name(name):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), stored)
    if "rope_freqs" in (extra or {}):
        writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def module() -> LlamaForCausalLM:
    return llama()


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
    assert set(header.tensors) == {gguf_name(name) for name in module.state_dict()}
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
    path = write_gguf(tmp_path / "new.gguf", module, arch="grok")
    with pytest.raises(UnsupportedArchitectureError, match="grok is not supported yet"):
        gguf_folder(path, store)


def test_rotary_scaling_that_is_not_read_is_a_deviation(tmp_path, module, store, events):
    path = write_gguf(tmp_path / "rope.gguf", module, extra={"rope_freqs": 1})
    for _ in ("converted", "found in the store"):
        events.clear()
        gguf_folder(path, store)
        (event,) = [event for event in events if isinstance(event, DeviationRecorded)]
        assert "rope_freqs.weight left out" in event.deviation.done
