"""The catalogue names models precisely, and refuses entries that do not."""

import pytest
from pydantic import ValidationError

from obliteratus.errors import UsageError
from obliteratus.models.catalogue import CatalogueEntry, catalogue, catalogue_entry

BASE = {"name": "x", "summary": "s", "kind": "causal", "hub": "a/b", "license": "MIT"}
FILES = {"model.gguf": {"parts": ["p/m.gguf"], "sha256": "0" * 64}}


def test_the_shipped_entries_are_pinned():
    entries = catalogue()
    assert list(entries) == ["smollm2-135m", "smollm2-refuser", "qwen2.5-coder-0.5b", "minilm"]
    assert entries["smollm2-135m"].gguf.sha256.startswith("b179c952")
    assert len(entries["qwen2.5-coder-0.5b"].gguf.parts) == 6
    assert entries["minilm"].gguf is None
    assert "model.safetensors" in entries["minilm"].files
    assert entries["smollm2-refuser"].base == "smollm2-135m"
    assert entries["smollm2-refuser"].adapter_folder.parent.name == "adapters"


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UsageError, match=r"no model 'smolm2-135m'. Did you mean 'smollm2-135m'"):
        catalogue_entry("smolm2-135m")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({}, "exactly one of"),
        ({"revision": "c", "base": "y", "adapter": "z"}, "exactly one of"),
        ({"wheels": ["w==1"]}, "wheels need files"),
        ({"base": "y"}, "base needs adapter"),
        ({"wheels": ["w"], "files": FILES}, "pinned as name==version"),
        ({"revision": "c", "typo": 1}, "Extra inputs"),
        ({"wheels": ["w==1"], "files": {"m": {"parts": ["p"], "sha256": "abc"}}}, "match pattern"),
    ],
)
def test_a_vague_entry_is_refused(entry, why):
    with pytest.raises(ValidationError, match=why):
        CatalogueEntry(**BASE, **entry)


def test_a_precise_entry_is_accepted():
    assert CatalogueEntry(**BASE, wheels=["w==1", "v==2"], files=FILES).wheels_in_words == (
        "w==1 and 1 more wheels"
    )
    assert CatalogueEntry(**BASE, revision="c").wheels_in_words == "no wheel"
