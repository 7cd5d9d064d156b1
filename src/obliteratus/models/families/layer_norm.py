"""GPT-NeoX and its contemporaries: LayerNorms before attention and MLP, many biases."""

from dataclasses import replace

from transformers import PretrainedConfig

from obliteratus.models.families.parts import (
    NORM_ON_STREAM,
    embedding,
    layer_normed,
    linears,
    norms,
    scaled_embedding,
    stream_norms,
)
from obliteratus.models.family import Family, Site, Variant, linear, register

GPT_NEOX = register(
    Family(
        name="layer_norm",
        model_types=("gpt_neox",),
        backbone="gpt_neox",
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        embeddings=(embedding("gpt_neox.embed_in"),),
        writers=(linear("attention.dense", "attention"), linear("mlp.dense_4h_to_h", "mlp")),
        readers=(
            linear("attention.query_key_value", "attention"),
            linear("mlp.dense_h_to_4h", "mlp"),
        ),
        head=linear("lm_head", "head"),
        internals=norms("input_layernorm", "post_attention_layernorm"),
    )
)

PERSIMMON = register(
    replace(
        GPT_NEOX,
        model_types=("persimmon",),
        backbone="model",
        blocks="model.layers",
        final_norm="model.final_layernorm",
        embeddings=(embedding("model.embed_tokens"),),
        writers=(linear("self_attn.dense", "attention"), linear("mlp.dense_4h_to_h", "mlp")),
        readers=(
            linear("self_attn.query_key_value", "attention"),
            linear("mlp.dense_h_to_4h", "mlp"),
        ),
        head=linear("lm_head", "head"),
        internals=(*GPT_NEOX.internals, *norms("self_attn.q_layernorm", "self_attn.k_layernorm")),
    )
)

PHI = register(
    replace(
        PERSIMMON,
        model_types=("phi",),
        writers=(linear("self_attn.dense", "attention"), linear("mlp.fc2", "mlp")),
        readers=(
            *linears("attention", *(f"self_attn.{name}_proj" for name in "qkv")),
            linear("mlp.fc1", "mlp"),
        ),
    )
)

FALCON = register(
    replace(
        GPT_NEOX,
        model_types=("falcon",),
        backbone="transformer",
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        embeddings=(embedding("transformer.word_embeddings"),),
        writers=(linear("self_attention.dense", "attention"), linear("mlp.dense_4h_to_h", "mlp")),
        readers=(
            linear("self_attention.query_key_value", "attention"),
            linear("mlp.dense_h_to_4h", "mlp"),
        ),
        head=linear("lm_head", "head"),
        internals=(*GPT_NEOX.internals, *norms("ln_attn", "ln_mlp")),
    )
)

NORM_FIRST = replace(
    FALCON,
    model_types=("bloom",),
    embeddings=layer_normed("transformer.word_embeddings_layernorm", *FALCON.embeddings),
    internals=GPT_NEOX.internals,
)


def keeps_what_is_normed(config: PretrainedConfig) -> bool:
    """Say whether the stream of a BLOOM goes on from behind its norms."""
    return bool(config.apply_residual_connection_post_layernorm)


BLOOM = register(
    replace(
        NORM_FIRST,
        variants=(
            Variant(
                keeps_what_is_normed,
                replace(
                    NORM_FIRST,
                    stream_sites=stream_norms("input_layernorm", "post_attention_layernorm"),
                    hooks_only=NORM_ON_STREAM,
                ),
            ),
        ),
    )
)
"""Its embedding enters the stream through a LayerNorm with a bias of its own."""

GPTJ = register(
    replace(
        FALCON,
        model_types=("gptj", "codegen"),
        embeddings=(embedding("transformer.wte"),),
        writers=(linear("attn.out_proj", "attention"), linear("mlp.fc_out", "mlp")),
        readers=(
            *linears("attention", *(f"attn.{name}_proj" for name in ("q", "k", "v", "qkv"))),
            linear("mlp.fc_in", "mlp"),
        ),
        internals=norms("ln_1"),
    )
)

MPT = register(
    replace(
        GPTJ,
        model_types=("mpt",),
        blocks="transformer.blocks",
        final_norm="transformer.norm_f",
        writers=(linear("attn.out_proj", "attention"), linear("ffn.down_proj", "mlp")),
        readers=(linear("attn.Wqkv", "attention"), linear("ffn.up_proj", "mlp")),
        internals=norms("norm_1", "norm_2"),
    )
)

GPT_NEO = register(
    replace(
        GPTJ,
        model_types=("gpt_neo",),
        embeddings=(embedding("transformer.wte"), embedding("transformer.wpe")),
        writers=(linear("attn.attention.out_proj", "attention"), linear("mlp.c_proj", "mlp")),
        readers=(
            *linears("attention", *(f"attn.attention.{name}_proj" for name in "qkv")),
            linear("mlp.c_fc", "mlp"),
        ),
        internals=norms("ln_1", "ln_2"),
    )
)

GPT_BIGCODE = register(
    replace(
        GPT_NEO,
        model_types=("gpt_bigcode",),
        writers=(linear("attn.c_proj", "attention"), linear("mlp.c_proj", "mlp")),
        readers=(linear("attn.c_attn", "attention"), linear("mlp.c_fc", "mlp")),
    )
)
"""GPT-2 with ordinary linear layers."""

NORM_BEFORE = replace(
    GPT_NEOX,
    model_types=("opt",),
    backbone="model.decoder",
    blocks="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    embeddings=(
        embedding("model.decoder.embed_tokens"),
        embedding("model.decoder.embed_positions"),
    ),
    writers=(linear("self_attn.out_proj", "attention"), linear("fc2", "mlp")),
    readers=(
        *linears("attention", *(f"self_attn.{name}_proj" for name in "qkv")),
        linear("fc1", "mlp"),
    ),
    head=linear("lm_head", "head"),
    internals=norms("self_attn_layer_norm", "final_layer_norm"),
)
NORM_AFTER = replace(
    NORM_BEFORE,
    final_norm=None,
    stream_sites=stream_norms("self_attn_layer_norm", "final_layer_norm"),
    hooks_only=NORM_ON_STREAM,
)
PROJECTED = replace(
    NORM_AFTER,
    final_norm="model.decoder.project_out",
    embeddings=(linear("model.decoder.project_in", "embedding"), NORM_AFTER.embeddings[1]),
    head=Site("lm_head.weight", "head", width="word_embed_proj_dim"),
)


def norms_after(config: PretrainedConfig) -> bool:
    """Say whether an OPT norms the stream behind attention and MLP instead of before them."""
    return not config.do_layer_norm_before


def norms_after_and_projects(config: PretrainedConfig) -> bool:
    """Say whether an OPT does so and has narrower embeddings than its stream, as the 350m has."""
    return norms_after(config) and config.word_embed_proj_dim != config.hidden_size


OPT = register(
    replace(
        NORM_BEFORE,
        variants=(Variant(norms_after_and_projects, PROJECTED), Variant(norms_after, NORM_AFTER)),
    )
)

BIOGPT = register(
    replace(
        NORM_BEFORE,
        model_types=("biogpt",),
        backbone="biogpt",
        blocks="biogpt.layers",
        final_norm="biogpt.layer_norm",
        embeddings=(scaled_embedding("biogpt.embed_tokens"), embedding("biogpt.embed_positions")),
        head=linear("output_projection", "head"),
    )
)
