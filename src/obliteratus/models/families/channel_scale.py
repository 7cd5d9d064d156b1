"""Doge and ZAYA: each block multiplies the stream channel by channel, which turns directions.

A hook on the write takes out what write and scale together change along a direction.
"""

from dataclasses import replace

from obliteratus.models.anatomy import StreamSite
from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.moe import fused
from obliteratus.models.families.parts import ATTENTION, GATED_MLP, linears, through
from obliteratus.models.family import linear, register

REASON = "each block scales the stream channel by channel, which turns what was removed"

DOGE = register(
    replace(
        LLAMA,
        name="channel_scale",
        model_types=("doge",),
        writers=(
            *through("self_attn", linear("self_attn.o_proj", "attention")),
            *through("mlp", linear("mlp.down_proj", "mlp")),
        ),
        readers=(*ATTENTION, *GATED_MLP),
        internals=(
            *LLAMA.internals,
            "input_residual",
            "post_attention_residual",
            "self_attn.A",
            "self_attn.dt_proj.*",
        ),
        stream_sites=(
            StreamSite("self_attn", "scaled", before="input_layernorm", scale="input_residual"),
            StreamSite(
                "mlp",
                "scaled",
                before="post_attention_layernorm",
                scale="post_attention_residual",
            ),
        ),
        hooks_only=REASON,
    )
)
"""A Doge with a mixture is left undeclared: its router mixes the tokens of a batch, so a batch has
other answers than its prompts alone."""

COMPRESSED = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed")
ZAYA = register(
    replace(
        LLAMA,
        name="channel_scale",
        model_types=("zaya",),
        writers=(
            *through("post_attention_residual_scale", linear("self_attn.o_proj", "attention")),
            fused("mlp.experts.down_proj", "post_mlp_residual_scale"),
        ),
        readers=(
            *linears("attention", *(f"self_attn.qkv_proj.{name}" for name in COMPRESSED)),
            linear("mlp.gate.down_proj", "experts"),
            fused("mlp.experts.gate_up_proj"),
        ),
        internals=(
            *LLAMA.internals,
            *(f"post_{part}_residual_scale.*" for part in ("attention", "mlp")),
            "self_attn.qkv_proj.conv_qk_*",
            "mlp.gate.router_mlp.*",
        ),
        model_internals=("model.input_hidden_states_scale", "model.input_hidden_states_bias"),
        stream_sites=tuple(
            StreamSite(f"post_{part}_residual_scale", "through", argument=1)
            for part in ("attention", "mlp")
        ),
        embedding_as_a_whole=True,
        hooks_only=REASON,
    )
)
"""Its embedding is scaled, too, before the first block. The module that scales the stream adds the
write to it, so the hook behind that module sees both."""
