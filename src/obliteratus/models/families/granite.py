"""Granite and MiniCPM: a scalar on every write to the stream and another on the embedding."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.parts import (
    embedding,
    linears,
    mixer_internals,
    multiplied,
    post_normed,
    routers,
    scaled_embedding,
)
from obliteratus.models.family import Site, register

RESIDUAL = "config.residual_multiplier"
EMBEDDING = embedding("model.embed_tokens", "config.embedding_multiplier")

GRANITE = register(
    replace(
        LLAMA,
        name="granite",
        model_types=("granite", "granite_swa"),
        embeddings=(EMBEDDING,),
        writers=multiplied(RESIDUAL, *LLAMA.writers),
    )
)

HYPERCLOVAX = register(
    replace(
        GRANITE,
        model_types=("hyperclovax",),
        writers=(
            *post_normed("post_norm1", GRANITE.writers[0]),
            *post_normed("post_norm2", GRANITE.writers[1]),
        ),
    )
)

MINICPM = register(
    replace(
        GRANITE,
        model_types=("minicpm3",),
        embeddings=(scaled_embedding("model.embed_tokens"),),
        writers=multiplied("model.layers.0.residual_scale", *LLAMA.writers),
    )
)

EXPERTS = Site(
    "block_sparse_moe.experts.down_proj",
    "experts",
    expert="fused",
    module="block_sparse_moe",
    optional=True,
)
SHARED = linears("experts", "shared_mlp.output_linear")
GRANITE_MOE = register(
    replace(
        GRANITE,
        model_types=("granitemoe", "granitemoe_swa", "granitemoeshared"),
        writers=multiplied(RESIDUAL, LLAMA.writers[0], EXPERTS, *SHARED),
        readers=(
            *LLAMA.readers,
            *routers("block_sparse_moe.router"),
            *linears("experts", "shared_mlp.input_linear"),
            replace(EXPERTS, weight="block_sparse_moe.experts.gate_up_proj"),
        ),
    )
)

GRANITE_HYBRID = register(
    replace(
        GRANITE_MOE,
        model_types=("granitemoehybrid",),
        writers=multiplied(
            RESIDUAL,
            *linears("attention", "self_attn.o_proj"),
            *linears("state_space", "mamba.out_proj"),
            EXPERTS,
            *SHARED,
        ),
        readers=(*GRANITE_MOE.readers, *linears("state_space", "mamba.in_proj")),
        internals=(*LLAMA.internals, *mixer_internals("mamba")),
    )
)
