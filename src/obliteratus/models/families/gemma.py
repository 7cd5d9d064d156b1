"""Gemma 2 to 4: each write passes a norm before it reaches the stream."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.parts import linears, post_normed, scaled_embedding
from obliteratus.models.family import Family, register

GAIN_OFFSET = 1.0
"""Gemma 2 and 3 store g − 1 and multiply by 1 + weight; Gemma 4 stores g."""


GEMMA = register(
    Family(
        name="gemma",
        model_types=("gemma2", "gemma3_text"),
        backbone="model",
        blocks="model.layers",
        final_norm="model.norm",
        embeddings=(scaled_embedding("model.embed_tokens"),),
        writers=(
            *post_normed("post_attention_layernorm", LLAMA.writers[0], offset=GAIN_OFFSET),
            *post_normed("post_feedforward_layernorm", LLAMA.writers[1], offset=GAIN_OFFSET),
        ),
        readers=LLAMA.readers,
        head=LLAMA.head,
        internals=(
            "input_layernorm.weight",
            "pre_feedforward_layernorm.weight",
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
        ),
    )
)

GEMMA4 = register(
    replace(
        GEMMA,
        model_types=("gemma4_text",),
        writers=(
            *post_normed("post_attention_layernorm", LLAMA.writers[0]),
            *post_normed("post_feedforward_layernorm", LLAMA.writers[1]),
            *post_normed("post_per_layer_input_norm", *linears("mlp", "per_layer_projection")),
        ),
        readers=(*GEMMA.readers, *linears("mlp", "per_layer_input_gate")),
        model_internals=("model.per_layer_model_projection.weight",),
        block_scale="layer_scalar",
    )
)
"""The embeddings per layer are of their own width; what reads them writes to the stream. They are
made from the token embedding, so removing a direction from that reaches them too."""
