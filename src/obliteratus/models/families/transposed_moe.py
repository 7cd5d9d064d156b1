"""Mixtures whose experts are stored transposed: gpt-oss, Llama 4 and Aria fused, DBRX stacked."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.moe import fused
from obliteratus.models.families.parts import ATTENTION, embedding, linears, norms, routers, through
from obliteratus.models.family import Site, linear, register


def transposed(weight: str, module: str, *, bias: str | None = None) -> Site:
    """Return the site of one fused tensor of experts [expert, in, out] in some blocks."""
    return replace(fused(weight, module), layout="in_out", bias=bias)


GPT_OSS = register(
    replace(
        LLAMA,
        name="transposed_moe",
        model_types=("gpt_oss",),
        writers=(
            linear("self_attn.o_proj", "attention"),
            transposed("mlp.experts.down_proj", "mlp", bias="mlp.experts.down_proj_bias"),
        ),
        readers=(
            *ATTENTION,
            *routers("mlp.router", optional=False),
            transposed("mlp.experts.gate_up_proj", "mlp", bias="mlp.experts.gate_up_proj_bias"),
        ),
    )
)

ARIA = register(
    replace(
        GPT_OSS,
        model_types=("aria_text",),
        writers=(
            linear("self_attn.o_proj", "attention"),
            transposed("mlp.experts.down_proj", "mlp"),
            *through("mlp", *linears("experts", "mlp.shared_experts.down_proj")),
        ),
        readers=(
            *GPT_OSS.readers,
            *linears("experts", "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        ),
    )
)

LLAMA4 = register(
    replace(
        GPT_OSS,
        model_types=("llama4_text",),
        writers=(
            linear("self_attn.o_proj", "attention"),
            transposed("feed_forward.experts.down_proj", "feed_forward"),
            *through("feed_forward", *linears("experts", "feed_forward.shared_expert.down_proj")),
            *through("feed_forward", *linears("mlp", "feed_forward.down_proj")),
        ),
        readers=(
            *ATTENTION,
            *routers("feed_forward.router", top_k="config.num_experts_per_tok"),
            transposed("feed_forward.experts.gate_up_proj", "feed_forward"),
            *linears("experts", *(f"feed_forward.shared_expert.{n}_proj" for n in ("gate", "up"))),
            *linears("mlp", "feed_forward.gate_proj", "feed_forward.up_proj"),
        ),
    )
)

DBRX = register(
    replace(
        GPT_OSS,
        model_types=("dbrx",),
        backbone="transformer",
        blocks="transformer.blocks",
        final_norm="transformer.norm_f",
        embeddings=(embedding("transformer.wte"),),
        writers=(
            linear("norm_attn_norm.attn.out_proj", "attention"),
            Site("ffn.experts.mlp.w2", "experts", layout="in_out", expert="routed", module="ffn"),
        ),
        readers=(
            linear("norm_attn_norm.attn.Wqkv", "attention"),
            *routers("ffn.router.layer", top_k="config.ffn_config.moe_top_k", optional=False),
            Site("ffn.experts.mlp.w1", "experts", expert="routed", module="ffn"),
            Site("ffn.experts.mlp.v1", "experts", expert="routed", module="ffn"),
        ),
        internals=norms("norm_attn_norm.norm_1", "norm_attn_norm.norm_2"),
    )
)
"""All experts stacked in one matrix [expert · in, out]: an edit of it is an edit of each."""
