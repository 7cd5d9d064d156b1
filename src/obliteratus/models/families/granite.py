"""Granite: llama with a scalar on every write to the stream and another on the embedding."""

from dataclasses import replace

from obliteratus.models.families.llama import LLAMA
from obliteratus.models.family import register

GRANITE = register(
    replace(
        LLAMA,
        name="granite",
        model_types=("granite",),
        embeddings=tuple(
            replace(site, multiplier="config.embedding_multiplier") for site in LLAMA.embeddings
        ),
        writers=tuple(
            replace(site, multiplier="config.residual_multiplier") for site in LLAMA.writers
        ),
    )
)
