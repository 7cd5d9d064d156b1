"""A tiny model and four pairs of prompts, for every test that runs a model."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from obliteratus.measure.documents import Document
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.settings import VerifySettings
from obliteratus.testing.tiny import tiny_model

WORDS = ("lock", "kettle", "river", "engine")


@pytest.fixture
def model() -> LoadedModel:
    return tiny_model("llama", dtype=torch.float32)


@pytest.fixture
def weakened() -> Callable[[LoadedModel], LoadedModel]:
    """Return a function that makes a slightly different copy of a model."""

    def change(model: LoadedModel) -> LoadedModel:
        copy = tiny_model("llama", dtype=torch.float32)
        for site in copy.anatomy.writers[1:]:
            copy.module.get_parameter(site.name).data.mul_(0.97)
        source = dataclasses.replace(model.source, asked="weakened", fingerprint="weakened")
        return dataclasses.replace(copy, source=source)

    return change


@pytest.fixture
def pairs() -> ContrastSet:
    sides = [
        tuple(
            Prompt(f"{name}-{index}", f"How do I {verb} a {word}?", f"category {index % 2}")
            for index, word in enumerate(WORDS)
        )
        for name, verb in (("harmful", "break"), ("harmless", "mend"))
    ]
    return ContrastSet("tiny", sides[0], sides[1], is_paired=True)


@pytest.fixture
def documents() -> tuple[Document, ...]:
    texts = ("The rain went on all night.", "Boil the water, then wait.", "She wrote to him again.")
    return tuple(Document(f"d{index}", "test", text) for index, text in enumerate(texts))


@pytest.fixture
def brief() -> VerifySettings:
    return VerifySettings(max_new_tokens=4, sequence_prompts=3, sequence_tokens=2, over_refusal=0)
