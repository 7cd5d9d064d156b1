"""Gemma 2 and 3: each write passes a norm (gain stored as g − 1) before it reaches the stream."""

from dataclasses import replace

from obliteratus.models.anatomy import Component, PostNorm
from obliteratus.models.families.llama import LLAMA
from obliteratus.models.family import Family, Site, register

GAIN_OFFSET = 1.0
"""Gemma 2 and 3 multiply by 1 + weight."""


def post_normed(module: str, component: Component, norm: str) -> Site:
    """Return the site of a linear writer whose output goes through ``norm``."""
    return Site(
        f"{module}.weight",
        component,
        bias=f"{module}.bias",
        post_norm=PostNorm(f"{norm}.weight", GAIN_OFFSET),
    )


def scaled_embedding(path: str) -> Site:
    """Return the site of a token embedding that multiplies its own output by ``embed_scale``."""
    return Site(
        f"{path}.weight",
        "embedding",
        layout="in_out",
        multiplier=f"{path}.embed_scale",
        module_multiplies=True,
    )


GEMMA = register(
    Family(
        name="gemma",
        model_types=("gemma2", "gemma3_text"),
        backbone="model",
        blocks="model.layers",
        final_norm="model.norm",
        embeddings=(scaled_embedding("model.embed_tokens"),),
        writers=(
            post_normed("self_attn.o_proj", "attention", "post_attention_layernorm"),
            post_normed("mlp.down_proj", "mlp", "post_feedforward_layernorm"),
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

GEMMA3_MULTIMODAL = register(
    replace(
        GEMMA,
        model_types=("gemma3",),
        backbone="model.language_model",
        blocks="model.language_model.layers",
        final_norm="model.language_model.norm",
        embeddings=(
            scaled_embedding("model.language_model.embed_tokens"),
            Site(
                "model.multi_modal_projector.mm_input_projection_weight",
                "embedding",
                layout="in_out",
            ),
        ),
        model_internals=("model.vision_tower.*", "model.multi_modal_projector.mm_soft_emb_norm.*"),
    )
)
"""Images enter the stream through the projector, in place of token embeddings."""
