"""Gemma 3n: four streams side by side (AltUp), and a copy of one that is written back (Laurel).

Every block predicts all four streams from all four and corrects them by what it computed from the
active one, with one scalar per token and pair of streams, so that what is in no write is in no
stream. But Laurel writes a copy of the active stream behind a norm, whose gains turn what was
removed: hooks act on each write as it is added, behind its norm.
"""

from dataclasses import replace

from obliteratus.models.families.gemma import GEMMA4
from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.multimodal import seeing
from obliteratus.models.families.parts import linears, norms, scaled_embedding, through
from obliteratus.models.family import SideBySide, Site, linear, register

REASON = (
    "a normed copy of the stream is written back to it (Laurel), and the gains of that norm turn "
    "what was removed"
)
MOST_STREAMS = 8  # the projections of more would be unmatched

GEMMA3N_TEXT = register(
    replace(
        GEMMA4,
        name="altup",
        model_types=("gemma3n_text",),
        embeddings=(
            scaled_embedding("model.embed_tokens"),
            *linears(
                "embedding",
                *(f"model.altup_projections.{index}" for index in range(MOST_STREAMS - 1)),
            ),
        ),
        writers=(
            *through("laurel", linear("laurel.linear_right", "mlp")),
            *through("post_attention_layernorm", LLAMA.writers[0]),
            *through("post_feedforward_layernorm", LLAMA.writers[1]),
            *through("post_per_layer_input_norm", linear("per_layer_projection", "mlp")),
        ),
        readers=(
            *GEMMA4.readers,
            linear("laurel.linear_left", "mlp"),
            linear("altup.modality_router", "mlp"),
        ),
        closing=linears(
            "embedding",
            *(f"model.altup_unembed_projections.{index}" for index in range(MOST_STREAMS - 1)),
        ),
        internals=(
            *GEMMA4.internals,
            *norms(
                *(f"post_{part}_layernorm" for part in ("attention", "feedforward")),
                "post_per_layer_input_norm",
                "laurel.post_laurel_norm",
                "altup.router_norm",
            ),
            "altup.correct_output_scale",
            "altup.prediction_coefs.weight",
            "altup.correction_coefs.weight",
        ),
        model_internals=(*GEMMA4.model_internals, "model.embed_tokens_per_layer.weight"),
        block_scale=None,
        hooks_only=REASON,
        streams=SideBySide("config.altup_num_inputs", "config.altup_active_idx"),
        variants=(),
    )
)
"""The other streams start as projections of the embedding, and end as projections that are averaged
with the first; each is brought to the magnitude of the first by a scalar per token. The scale of
the corrected output multiplies only what the gate of the embeddings per layer reads."""


def soft_tokens(embedder: str) -> Site:
    """Return the site of what writes images or sound into the embedding, behind its norm."""
    return Site(f"{embedder}.embedding_projection.weight", "embedding", module=embedder)


EMBEDDERS = ("model.embed_vision", "model.embed_audio")

GEMMA3N = register(
    replace(
        seeing(
            GEMMA3N_TEXT,
            "gemma3n",
            projectors=tuple(soft_tokens(embedder) for embedder in EMBEDDERS),
            encoder=(
                "model.vision_tower.*",
                "model.audio_tower.*",
                *(f"{embedder}.embedding.weight" for embedder in EMBEDDERS),
                *(f"{embedder}.*_norm.weight" for embedder in EMBEDDERS),
            ),
        ),
        name="altup",
    )
)
"""Its encoder of images is one of timm, which must be installed to load it."""
