"""Gemma 2 to 4: each write passes a norm before it reaches the stream."""

from dataclasses import replace

from transformers import PretrainedConfig

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.moe import fused
from obliteratus.models.families.parts import (
    linears,
    norms,
    post_normed,
    routers,
    scaled_embedding,
    through,
)
from obliteratus.models.family import Family, Variant, register

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


def has_experts(config: PretrainedConfig) -> bool:
    """Whether a Gemma 4 has experts beside each MLP."""
    return bool(getattr(config.get_text_config(), "enable_moe_block", False))


_GEMMA4 = replace(
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
"""The embeddings per layer are of their own width; what reads them writes to the stream. They are
made from the token embedding, so removing a direction from that reaches them too."""

GEMMA4_MOE = replace(
    _GEMMA4,
    writers=(
        _GEMMA4.writers[0],
        *through(
            "post_feedforward_layernorm", LLAMA.writers[1], fused("experts.down_proj", "experts")
        ),
        *_GEMMA4.writers[2:],
    ),
    readers=(
        *_GEMMA4.readers,
        *routers("router.proj", chosen_by="router"),
        fused("experts.gate_up_proj", "experts"),
    ),
    internals=(
        *_GEMMA4.internals,
        *norms(
            "post_feedforward_layernorm",
            "post_feedforward_layernorm_1",
            "post_feedforward_layernorm_2",
            "pre_feedforward_layernorm_2",
        ),
        "router.scale",
    ),
    hooks_only="its MLP and its experts pass two norms on their way to the stream",
)

GEMMA4 = register(replace(_GEMMA4, variants=(Variant(has_experts, GEMMA4_MOE),)))
