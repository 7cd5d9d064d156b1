"""Mixtures of experts whose down-projections are fused into one tensor [expert, d_model, d_in]."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.family import Site, linear, register

ATTENTION_READERS = tuple(site for site in LLAMA.readers if site.component == "attention")
ROUTER = Site("mlp.gate.weight", "experts", optional=True)
FUSED_READER = Site(
    "mlp.experts.gate_up_proj", "experts", module="mlp.experts", expert="fused", optional=True
)
FUSED_WRITER = Site(
    "mlp.experts.down_proj", "experts", module="mlp.experts", expert="fused", optional=True
)
"""The router's weights multiply an expert's output, so an edit of every expert commutes with them.
Optional because some blocks of Qwen3-MoE are dense; a block with neither would leave parameters
unmatched or have none to edit."""

DENSE_MLP = tuple(
    linear(f"mlp.{name}", "mlp", optional=True) for name in ("gate_proj", "up_proj", "down_proj")
)

MOE = register(
    replace(
        LLAMA,
        name="moe",
        model_types=("mixtral", "qwen3_moe", "olmoe"),
        writers=(linear("self_attn.o_proj", "attention"), FUSED_WRITER, DENSE_MLP[2]),
        readers=(*ATTENTION_READERS, ROUTER, FUSED_READER, *DENSE_MLP[:2]),
    )
)
