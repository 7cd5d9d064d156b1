"""Blocks of different kinds in one model: attention, state space, convolution, linear attention.

What a block mixes tokens with differs from block to block, so every mixer is optional; a block
with none of them would leave parameters unmatched.
"""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.moe import MOE, READERS, WRITERS, fused
from obliteratus.models.families.parts import (
    ATTENTION,
    ATTENTION_INTERNALS,
    embedding,
    linears,
    mixer_internals,
    multiplied,
    norms,
    post_normed,
    routers,
    through,
)
from obliteratus.models.family import linear, register

SELF_ATTENTION = linears("attention", "self_attn.o_proj")
MAMBA_IN = linears("state_space", "mamba.in_proj")
MAMBA_OUT = linears("state_space", "mamba.out_proj")
FEED_FORWARD = tuple(
    linears("mlp", f"feed_forward.{name}")[0] for name in ("down_proj", "gate_proj", "up_proj")
)
LINEAR_ATTENTION_IN = linears(
    "state_space",
    *(f"linear_attn.in_proj_{name}" for name in ("qkvz", "ba", "qkv", "z", "b", "a")),
)
LINEAR_ATTENTION_OUT = linears("state_space", "linear_attn.out_proj")

JAMBA = register(
    replace(
        LLAMA,
        name="hybrid",
        model_types=("jamba", "bamba"),
        final_norm="model.final_layernorm",
        writers=(
            *SELF_ATTENTION,
            *MAMBA_OUT,
            fused("feed_forward.experts.down_proj", "feed_forward"),
            *through("feed_forward", FEED_FORWARD[0]),
        ),
        readers=(
            *ATTENTION,
            *MAMBA_IN,
            *routers("feed_forward.router"),
            fused("feed_forward.experts.gate_up_proj", "feed_forward"),
            *FEED_FORWARD[1:],
        ),
        internals=(
            *norms("input_layernorm", "pre_ff_layernorm"),
            *mixer_internals("mamba"),
        ),
    )
)

FALCON_H1 = register(
    replace(
        JAMBA,
        model_types=("falcon_h1",),
        embeddings=(embedding("model.embed_tokens", "config.embedding_multiplier"),),
        writers=(
            *multiplied("config.attention_out_multiplier", *SELF_ATTENTION),
            *multiplied("config.ssm_out_multiplier", *MAMBA_OUT),
            *through("feed_forward", FEED_FORWARD[0]),
        ),
    )
)
"""Attention and state space side by side in every block, each with its own multiplier; that of the
MLP is inside ``feed_forward``."""

NEMOTRON_H = register(
    replace(
        LLAMA,
        name="hybrid",
        model_types=("nemotron_h",),
        final_norm="model.norm_f",
        embeddings=(embedding("model.embeddings"),),
        writers=(
            *linears("attention", "mixer.o_proj"),
            *through("mixer", *linears("state_space", "mixer.out_proj")),
            fused("mixer.experts.down_proj", "mixer"),
            *through("mixer", *linears("experts", "mixer.shared_experts.down_proj")),
            *through("mixer", *linears("mlp", "mixer.down_proj")),
        ),
        readers=(
            *linears("attention", *(f"mixer.{name}_proj" for name in "qkv")),
            *linears("state_space", "mixer.in_proj"),
            *routers("mixer.gate"),
            *linears("experts", "mixer.shared_experts.up_proj"),
            fused("mixer.experts.up_proj", "mixer"),
            *linears("mlp", "mixer.up_proj"),
        ),
        internals=("norm.weight", *mixer_internals("mixer")),
    )
)

LFM2 = register(
    replace(
        LLAMA,
        name="hybrid",
        model_types=("lfm2", "lfm2_moe"),
        final_norm="model.embedding_norm",
        writers=(
            *linears("attention", "self_attn.out_proj", "self_attn.o_proj"),
            *linears("state_space", "conv.out_proj"),
            fused("feed_forward.experts.down_proj", "feed_forward"),
            *through("feed_forward", *linears("mlp", "feed_forward.w2")),
        ),
        readers=(
            *ATTENTION,
            *linears("state_space", "conv.in_proj"),
            *routers("feed_forward.gate"),
            fused("feed_forward.experts.gate_up_proj", "feed_forward"),
            *linears("mlp", "feed_forward.w1", "feed_forward.w3"),
        ),
        internals=(*norms("operator_norm", "ffn_norm", "conv.conv"), *ATTENTION_INTERNALS),
    )
)
"""The final norm is called ``embedding_norm``; it stands after the last block."""

LFM3 = register(
    replace(
        LFM2,
        model_types=("lfm3",),
        writers=(
            *post_normed("post_operator_norm", *LFM2.writers[:3]),
            *post_normed("post_ffn_norm", *LFM2.writers[3:]),
        ),
    )
)

QWEN3_NEXT = register(
    replace(
        MOE,
        name="hybrid",
        model_types=("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        writers=(*SELF_ATTENTION, *LINEAR_ATTENTION_OUT, *WRITERS),
        readers=(*ATTENTION, *LINEAR_ATTENTION_IN, *READERS),
        internals=(*LLAMA.internals, *norms("linear_attn.conv1d", "linear_attn.norm")),
    )
)

DELTA = register(
    replace(
        MOE,
        name="hybrid",
        model_types=("kimi_linear", "bailing_hybrid"),
        readers=(
            *MOE.readers,
            *linears("state_space", "self_attn.b_proj", "self_attn.g_a_proj"),
            *linears("state_space", *(f"self_attn.forget_gate.{n}_proj" for n in ("f_a", "f"))),
        ),
        internals=(
            *LLAMA.internals,
            *norms("self_attn.o_norm", "self_attn.*_conv1d"),
            *(f"self_attn.forget_gate.{name}" for name in ("dt_bias", "A_log", "f_b_proj.weight")),
            "self_attn.g_b_proj.*",
        ),
    )
)
"""Delta-rule attention keeps the names of attention and adds gates that read the stream."""

RECURRENT_GEMMA = register(
    replace(
        LLAMA,
        name="hybrid",
        model_types=("recurrent_gemma",),
        final_norm="model.final_norm",
        embeddings=(embedding("model.embed_tokens", "model.normalizer"),),
        writers=(
            *linears("attention", "temporal_block.o_proj"),
            *linears("state_space", "temporal_block.linear_out"),
            linear("mlp_block.down_proj", "mlp"),
        ),
        readers=(
            *linears("attention", *(f"temporal_block.{name}_proj" for name in "qkv")),
            *linears("state_space", "temporal_block.linear_x", "temporal_block.linear_y"),
            *linears("mlp", "mlp_block.gate_proj", "mlp_block.up_proj"),
        ),
        internals=(
            *norms("temporal_pre_norm", "channel_pre_norm", "temporal_block.conv_1d"),
            "temporal_block.rg_lru.*",
        ),
    )
)
