"""LongCat-Flash: two attentions and MLPs per block, and experts that pass their input on."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.moe import fused
from obliteratus.models.families.parts import linears, norms
from obliteratus.models.family import linear, register

HALVES = ("0", "1")

LONGCAT_FLASH = register(
    replace(
        LLAMA,
        name="longcat",
        model_types=("longcat_flash",),
        writers=(
            *(linear(f"self_attn.{half}.o_proj", "attention") for half in HALVES),
            *(linear(f"mlps.{half}.down_proj", "mlp") for half in HALVES),
            fused("mlp.experts.down_proj"),
        ),
        readers=(
            *linears(
                "attention",
                *(f"self_attn.{half}.q_a_proj" for half in HALVES),
                *(f"self_attn.{half}.kv_a_proj_with_mqa" for half in HALVES),
            ),
            *linears(
                "mlp", *(f"mlps.{half}.{part}_proj" for half in HALVES for part in ("gate", "up"))
            ),
            linear("mlp.router.classifier", "experts"),
            fused("mlp.experts.gate_up_proj"),
        ),
        internals=(
            *norms(*(f"input_layernorm.{half}" for half in HALVES)),
            *norms(*(f"post_attention_layernorm.{half}" for half in HALVES)),
            *norms(*(f"self_attn.{half}.q_a_layernorm" for half in HALVES)),
            *norms(*(f"self_attn.{half}.kv_a_layernorm" for half in HALVES)),
        ),
        hooks_only="some of its experts pass their normed input on to the stream",
    )
)
"""The mixture reads in the middle of a block and is added at its end."""
