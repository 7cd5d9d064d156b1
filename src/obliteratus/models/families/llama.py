"""Llama and the families built like it: two writers per block, each straight into the stream."""

from dataclasses import replace

from obliteratus.models.families.parts import (
    ATTENTION,
    ATTENTION_INTERNALS,
    GATED_MLP,
    norms,
    scaled_embedding,
)
from obliteratus.models.family import Family, Site, linear, register

LLAMA = register(
    Family(
        name="llama",
        model_types=(
            *(
                "llama",
                "mistral",
                "ministral",
                "ministral3",
                "qwen2",
                "qwen3",
                "seed_oss",
                "smollm3",
            ),
            *(
                "arcee",
                "cwm",
                "diffllama",
                "ernie4_5",
                "glm",
                "helium",
                "hunyuan_v1_dense",
                "jais2",
            ),
            *("nemotron", "olmo", "phi3", "stablelm", "youtu"),
        ),
        backbone="model",
        blocks="model.layers",
        final_norm="model.norm",
        embeddings=(Site("model.embed_tokens.weight", "embedding", layout="in_out"),),
        writers=(linear("self_attn.o_proj", "attention"), linear("mlp.down_proj", "mlp")),
        readers=(*ATTENTION, *GATED_MLP),
        head=linear("lm_head", "head"),
        internals=(
            *norms("input_layernorm", "post_attention_layernorm"),
            *ATTENTION_INTERNALS,
            "self_attn.lambda_*",
        ),
    )
)
"""StableLM may run attention and MLP side by side; a sum of writes does not care. DiffLlama's
lambdas and OLMo's norms (which have no weights) stay inside what reads."""

COHERE = register(
    replace(
        LLAMA,
        model_types=("cohere", "cohere2"),
        internals=("input_layernorm.weight", *ATTENTION_INTERNALS),
    )
)

APERTUS = register(
    replace(
        LLAMA,
        model_types=("apertus",),
        internals=(*norms("attention_layernorm", "feedforward_layernorm"), *ATTENTION_INTERNALS),
    )
)

BITNET = register(
    replace(
        LLAMA,
        model_types=("bitnet",),
        internals=(*LLAMA.internals, *norms("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")),
    )
)
"""BitNet's sub-norms sit before the writers, so they change what a writer reads."""

SCALED = register(
    replace(LLAMA, model_types=("gemma",), embeddings=(scaled_embedding("model.embed_tokens"),))
)

VAULT_GEMMA = register(
    replace(
        SCALED,
        model_types=("vaultgemma",),
        internals=norms("input_layernorm", "pre_feedforward_layernorm"),
    )
)

STARCODER2 = register(
    replace(
        LLAMA,
        model_types=("starcoder2",),
        writers=(LLAMA.writers[0], linear("mlp.c_proj", "mlp")),
        readers=(*ATTENTION, linear("mlp.c_fc", "mlp")),
    )
)
