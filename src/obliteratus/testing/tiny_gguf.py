"""A tiny llama as a GGUF file that transformers and llama.cpp both read."""

from collections.abc import Collection, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from jaxtyping import Float
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from obliteratus.testing.tiny import randomise_parameters

HEADS, KV_HEADS, WIDTH, INNER, LAYERS, CONTEXT = 4, 2, 32, 64, 3, 64
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
TOKENS = ("<unk>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "aa")
N_SPECIAL = 3
END = ".weight"


def tiny_llama(*, seed: int = 0, is_tied: bool = False) -> LlamaForCausalLM:
    """Return a random llama of d_model = 32 whose every matrix and gain is off its default.

    Rows are a multiple of 32 long, which Q8_0 needs.
    """
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=is_tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)
    randomise_parameters(module, seed=seed)
    return module


def tiny_gguf(
    path: Path,
    module: LlamaForCausalLM,
    *,
    kind: str = "F32",
    kinds: Mapping[str, str] | None = None,
    architecture: str = "llama",
    extra: Mapping[str, int] | None = None,
    leave_out: Collection[str] = (),
    ones: Collection[str] = (),
) -> Path:
    """Write ``module`` to ``path`` with its matrices as ``kind`` and its gains in F32.

    ``kinds`` gives the matrices of one part, such as ``ffn_down``, a kind of their own. ``extra``
    are more keys, ``leave_out`` names tensors that are not written and ``ones`` tensors of four
    ones that are. A head that shares the embedding is left out, as llama.cpp's converter does.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _write_keys(writer, extra or {})
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for parameter, weight in module.named_parameters():
        name = names.get_name(parameter, (END,))
        if name is None or name in leave_out:
            continue
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(parameter.split(".")[-2])
        stored = (rotary_order(weight, heads) if heads else weight).numpy()
        part = name.removesuffix(END).split(".")[-1]
        wanted = "F32" if weight.ndim == 1 else (kinds or {}).get(part, kind)
        as_kind = gguf.GGMLQuantizationType[wanted]
        writer.add_tensor(name, gguf.quants.quantize(stored, as_kind), raw_dtype=as_kind)
    for name in ones:
        writer.add_tensor(name, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rotary_order(
    weight: Float[Tensor, "rows columns"], heads: int
) -> Float[Tensor, "rows columns"]:
    """Return the rows of a query or key matrix in the order in which GGUF files keep them."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def _write_keys(writer: gguf.GGUFWriter, extra: Mapping[str, int]) -> None:
    writer.add_name("A tiny llama")
    writer.add_string("general.license", "mit")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(TOKENS))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3] * N_SPECIAL + [1] * (len(TOKENS) - N_SPECIAL))
    writer.add_token_merges(["a a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in extra.items():
        writer.add_uint16(key, value)
