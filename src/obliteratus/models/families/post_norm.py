"""RMS norms between the writers and the stream whose gain is stored as it is: OLMo 2, GLM 4 ..."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.parts import ATTENTION_INTERNALS, norms, post_normed
from obliteratus.models.family import register

OLMO2 = register(
    replace(
        LLAMA,
        name="post_norm",
        model_types=("olmo2", "olmo3", "exaone4"),
        writers=(
            *post_normed("post_attention_layernorm", LLAMA.writers[0]),
            *post_normed("post_feedforward_layernorm", LLAMA.writers[1]),
        ),
        internals=ATTENTION_INTERNALS,
    )
)

GLM4 = register(
    replace(
        OLMO2,
        model_types=("glm4",),
        writers=(
            *post_normed("post_self_attn_layernorm", LLAMA.writers[0]),
            *post_normed("post_mlp_layernorm", LLAMA.writers[1]),
        ),
        internals=(*norms("input_layernorm", "post_attention_layernorm"), *ATTENTION_INTERNALS),
    )
)
