"""Models that also see: a text decoder one level down, and projectors that write to its stream.

What a projector returns takes the place of token embeddings, so its last matrix is a writer like
the embedding. The encoder in front of it has a stream of its own, which is left alone.
"""

from dataclasses import replace

from obliteratus.models.families.gemma import GEMMA, GEMMA4, GEMMA4_MOE, has_experts
from obliteratus.models.families.hybrid import QWEN3_NEXT
from obliteratus.models.families.llama import LLAMA
from obliteratus.models.families.moe import MOE
from obliteratus.models.families.transposed_moe import LLAMA4
from obliteratus.models.family import Family, Site, Variant, linear, register

TEXT = "model.language_model"


def projector(module: str) -> Site:
    """Return the site of the last linear layer of a projector, which may have a bias."""
    return Site(f"{module}.weight", "embedding", bias=f"{module}.bias", optional=True)


def seeing(
    text: Family,
    *model_types: str,
    projectors: tuple[Site, ...],
    encoder: tuple[str, ...],
    backbone: str = TEXT,
) -> Family:
    """Return ``text`` with its backbone one level down, and what writes images into its stream.

    ``encoder`` are the patterns of the parameters in front of the projectors' last matrices.
    """

    def below(path: str) -> str:
        return path.replace("model.", f"{backbone}.", 1)

    def moved(site: Site) -> Site:
        multiplier = site.multiplier
        return replace(
            site,
            weight=below(site.weight),
            bias=site.bias and below(site.bias),
            multiplier=below(multiplier) if isinstance(multiplier, str) else multiplier,
        )

    return replace(
        text,
        name="multimodal",
        model_types=model_types,
        backbone=backbone,
        blocks=below(text.blocks),
        final_norm=text.final_norm and below(text.final_norm),
        embeddings=(*map(moved, text.embeddings), *projectors),
        closing=tuple(map(moved, text.closing)),
        model_internals=(*map(below, text.model_internals), *encoder),
    )


LLAVA = register(
    seeing(
        LLAMA,
        "llava",
        "mistral3",
        projectors=(projector("model.multi_modal_projector.linear_2"),),
        encoder=(
            "model.vision_tower.*",
            "model.multi_modal_projector.linear_1.*",
            "model.multi_modal_projector.norm.*",
            "model.multi_modal_projector.patch_merger.*",
        ),
    )
)
"""The decoder of LLaVA may be of any llama-like type."""

QWEN_VL = register(
    seeing(
        LLAMA,
        "qwen2_vl",
        "qwen2_5_vl",
        projectors=(projector("model.visual.merger.mlp.2"),),
        encoder=(
            "model.visual.blocks.*",
            "model.visual.patch_embed.*",
            "model.visual.merger.ln_q.*",
            "model.visual.merger.mlp.0.*",
        ),
    )
)

QWEN3_ENCODER = (
    *(f"model.visual.{name}.*" for name in ("blocks", "patch_embed", "pos_embed")),
    "model.visual.merger.norm.*",
    "model.visual.merger.linear_fc1.*",
    "model.visual.deepstack_merger_list.*.norm.*",
    "model.visual.deepstack_merger_list.*.linear_fc1.*",
)
QWEN3_PROJECTORS = (
    projector("model.visual.merger.linear_fc2"),
    *(projector(f"model.visual.deepstack_merger_list.{index}.linear_fc2") for index in range(8)),
)
"""Qwen3-VL also adds features of inner encoder layers to the stream after the first blocks; more
than eight of them would be unmatched."""

QWEN3_VL = register(seeing(LLAMA, "qwen3_vl", projectors=QWEN3_PROJECTORS, encoder=QWEN3_ENCODER))
QWEN3_VL_MOE = register(
    seeing(MOE, "qwen3_vl_moe", projectors=QWEN3_PROJECTORS, encoder=QWEN3_ENCODER)
)
QWEN3_5 = register(
    seeing(
        QWEN3_NEXT,
        "qwen3_5",
        "qwen3_5_moe",
        projectors=QWEN3_PROJECTORS[:1],
        encoder=QWEN3_ENCODER,
    )
)

GEMMA3 = register(
    seeing(
        GEMMA,
        "gemma3",
        projectors=(
            Site(
                "model.multi_modal_projector.mm_input_projection_weight",
                "embedding",
                layout="in_out",
            ),
        ),
        encoder=("model.vision_tower.*", "model.multi_modal_projector.mm_soft_emb_norm.*"),
    )
)

GEMMA4_PROJECTORS = (
    projector("model.embed_vision.embedding_projection"),
    projector("model.embed_audio.embedding_projection"),
)
GEMMA4_ENCODER = ("model.vision_tower.*", "model.audio_tower.*")


def gemma4(text: Family, *variants: Variant) -> Family:
    """Return a Gemma 4 that sees and perhaps hears."""
    family = seeing(text, "gemma4", projectors=GEMMA4_PROJECTORS, encoder=GEMMA4_ENCODER)
    return replace(family, variants=variants)


register(gemma4(GEMMA4, Variant(has_experts, gemma4(GEMMA4_MOE))))

LLAMA4_VL = register(
    replace(
        seeing(
            LLAMA4,
            "llama4",
            projectors=(projector("multi_modal_projector.linear_1"),),
            encoder=("vision_model.*",),
            backbone="language_model.model",
        ),
        head=linear("language_model.lm_head", "head"),
    )
)
