"""Mixtures of experts whose matrices are fused into one tensor [expert, out, in] under ``mlp``.

Every writer of the MLP has ``mlp`` as its module: what leaves it is the sum of the routed experts,
weighted by the router, and of shared ones, perhaps gated, and an edit of each of them commutes with
all of that. Which of the sites a block has differs by model and by block; a block with none of them
would leave parameters unmatched or have none to edit.
"""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.parts import (
    ATTENTION,
    ATTENTION_INTERNALS,
    GATED_MLP,
    linears,
    norms,
    post_normed,
    routers,
    through,
)
from obliteratus.models.family import Site, linear, register

SHARED_NAMES = ("shared_experts", "shared_expert", "shared_mlp")


def fused(weight: str, module: str = "mlp") -> Site:
    """Return the site of one fused tensor of experts that may exist in a block."""
    return Site(weight, "experts", module=module, expert="fused", optional=True)


ROUTED = fused("mlp.experts.down_proj")
WRITERS = (
    ROUTED,
    *through("mlp", *linears("experts", *(f"mlp.{name}.down_proj" for name in SHARED_NAMES))),
    *through("mlp", *linears("mlp", "mlp.down_proj")),
)
READERS = (
    *routers("mlp.gate", "mlp.router"),
    *routers("mlp.router.gate", chosen_by="mlp.router"),
    *routers("mlp.gate.wg", chosen_by="mlp.gate"),
    *linears("experts", "mlp.shared_expert_gate"),
    fused("mlp.experts.gate_up_proj"),
    *linears(
        "experts",
        *(f"mlp.{name}.{part}" for name in SHARED_NAMES for part in ("gate_proj", "up_proj")),
    ),
    *GATED_MLP,
)

MOE = register(
    replace(
        LLAMA,
        name="moe",
        model_types=(
            *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "ernie4_5_moe", "glm4_moe", "dots1"),
            *("exaone_moe", "hy_v3", "solar_open", "mellum", "minimax_m2", "cohere2_moe", "phimoe"),
            *("hunyuan_v1_moe", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "laguna"),
        ),
        writers=(linear("self_attn.o_proj", "attention"), *WRITERS),
        readers=(*ATTENTION, *READERS),
    )
)

FLEX_OLMO = register(
    replace(
        MOE,
        model_types=("flex_olmo",),
        writers=(
            *post_normed("post_attention_layernorm", MOE.writers[0]),
            *post_normed("post_feedforward_layernorm", *WRITERS),
        ),
        internals=ATTENTION_INTERNALS,
    )
)

AFMOE = register(
    replace(
        MOE,
        model_types=("afmoe",),
        embeddings=LLAMA.embeddings,
        writers=(
            *post_normed("post_attention_layernorm", MOE.writers[0]),
            *post_normed("post_mlp_layernorm", *WRITERS),
        ),
        internals=(*norms("input_layernorm", "pre_mlp_layernorm"), *ATTENTION_INTERNALS),
    )
)
