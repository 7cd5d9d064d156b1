"""Mamba: one state-space mixer per block is the only writer."""

from obliteratus.models.families.parts import embedding, mixer_internals
from obliteratus.models.family import Family, linear, register

MAMBA = register(
    Family(
        name="mamba",
        model_types=("mamba", "mamba2", "falcon_mamba"),
        backbone="backbone",
        blocks="backbone.layers",
        final_norm="backbone.norm_f",
        embeddings=(embedding("backbone.embeddings"),),
        writers=(linear("mixer.out_proj", "state_space"),),
        readers=(linear("mixer.in_proj", "state_space"),),
        head=linear("lm_head", "head"),
        internals=("norm.weight", *mixer_internals("mixer")),
    )
)
