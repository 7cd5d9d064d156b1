"""Llama and the families built like it: two writers per block, each straight into the stream."""

from obliteratus.models.anatomy import Component
from obliteratus.models.family import Family, Site, linear, register

READERS: tuple[tuple[str, Component], ...] = (
    ("self_attn.q_proj", "attention"),
    ("self_attn.k_proj", "attention"),
    ("self_attn.v_proj", "attention"),
    ("mlp.gate_proj", "mlp"),
    ("mlp.up_proj", "mlp"),
)

LLAMA = register(
    Family(
        name="llama",
        model_types=("llama", "mistral", "ministral", "qwen2", "qwen3", "seed_oss", "smollm3"),
        backbone="model",
        blocks="model.layers",
        final_norm="model.norm",
        embeddings=(Site("model.embed_tokens.weight", "embedding", layout="in_out"),),
        writers=(linear("self_attn.o_proj", "attention"), linear("mlp.down_proj", "mlp")),
        readers=tuple(linear(name, component) for name, component in READERS),
        head=linear("lm_head", "head"),
        internals=(
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
        ),
    )
)
