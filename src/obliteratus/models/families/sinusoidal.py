"""XGLM and CTRL: fixed positions, which no weight holds, are added to the stream.

The hook acts on the input of the first block, where token embeddings and positions are one sum.
"""

from dataclasses import replace

from obliteratus.models.families.layer_norm import NORM_BEFORE
from obliteratus.models.families.parts import embedding, linears, norms, scaled_embedding
from obliteratus.models.family import linear, register

REASON = "its sinusoidal positions are added to the stream and are no parameters"

XGLM = register(
    replace(
        NORM_BEFORE,
        name="sinusoidal",
        model_types=("xglm",),
        backbone="model",
        blocks="model.layers",
        final_norm="model.layer_norm",
        embeddings=(scaled_embedding("model.embed_tokens"),),
        embedding_as_a_whole=True,
        hooks_only=REASON,
    )
)

CTRL = register(
    replace(
        XGLM,
        model_types=("ctrl",),
        backbone="transformer",
        blocks="transformer.h",
        final_norm="transformer.layernorm",
        embeddings=(embedding("transformer.w"),),
        writers=(linear("multi_head_attention.dense", "attention"), linear("ffn.2", "mlp")),
        readers=(
            *linears("attention", *(f"multi_head_attention.W{name}" for name in "qkv")),
            linear("ffn.0", "mlp"),
        ),
        internals=norms("layernorm1", "layernorm2"),
    )
)
"""The model multiplies its embedding by √d_model in place, behind the module."""
