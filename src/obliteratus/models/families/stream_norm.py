"""Norms that the stream itself goes through: MiniMax, and the first GPT.

There is no sum of writes at the end of such a model: each norm divides by a number of its own and
multiplies by gains, which write a removed direction back. Hooks take it out behind each norm.
"""

from dataclasses import replace

from obliteratus.models.families.gpt2 import GPT2
from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.moe import READERS, ROUTED
from obliteratus.models.families.parts import (
    ATTENTION,
    NORM_ON_STREAM,
    embedding,
    linears,
    norms,
    stream_norms,
)
from obliteratus.models.family import Site, register


def mixed(part: str, *sites: Site) -> tuple[Site, ...]:
    """Return ``sites`` with the scalars of their block: β on the write, α on the stream."""
    beta, alpha = f"block.{part}_beta_factor", f"block.{part}_alpha_factor"
    return tuple(replace(site, multiplier=beta, stream_multiplier=alpha) for site in sites)


MINIMAX = register(
    replace(
        LLAMA,
        name="stream_norm",
        model_types=("minimax",),
        writers=(
            *mixed("attn", *linears("attention", "self_attn.o_proj")),
            *mixed("attn", *linears("state_space", "self_attn.out_proj")),
            *mixed("mlp", ROUTED),
        ),
        readers=(*ATTENTION, *linears("state_space", "self_attn.output_gate"), *READERS),
        internals=(*norms("input_layernorm", "post_attention_layernorm", "self_attn.norm"),),
        stream_sites=stream_norms("input_layernorm", "post_attention_layernorm"),
        hooks_only=NORM_ON_STREAM,
        cache="own",
    )
)

OPENAI_GPT = register(
    replace(
        GPT2,
        name="stream_norm",
        model_types=("openai-gpt",),
        final_norm=None,
        embeddings=(
            embedding("transformer.tokens_embed"),
            embedding("transformer.positions_embed"),
        ),
        stream_sites=stream_norms("ln_1", "ln_2"),
        hooks_only=NORM_ON_STREAM,
        cache="none",
    )
)
"""It has no cache: every step runs all tokens again."""
