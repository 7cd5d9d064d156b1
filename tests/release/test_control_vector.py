"""A control vector says the same as the directions, in the numbering of llama.cpp."""

import dataclasses
import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.errors import DirectionError, StorageError
from obliteratus.events import DeviationRecorded, listening
from obliteratus.release.control_vector import export_control_vector

GOLDEN = "c5ce6540545d32bc4af9f7d4ec92d853f070ff007a171159acd8246c974e2867"
"""SHA-256 of the file that ``per_layer`` gives. It changes only when what a file means changes."""


@pytest.fixture
def per_layer() -> Directions:
    """Block i points along coordinate i, and its classes are i + 1 apart."""
    rows = torch.eye(4, dtype=torch.float64)
    return Directions(
        basis={"embedding": rows[:1], **{i: rows[i : i + 1] for i in range(4)}},
        scale={"embedding": 9.0, **{i: i + 1.0 for i in range(4)}},
        method="difference_of_means",
    )


@pytest.fixture
def selected(per_layer) -> Directions:
    row = torch.tensor([[0.6, 0.0, -0.8, 0.0]], dtype=torch.float64)
    basis = dict.fromkeys(per_layer.basis, row)
    return dataclasses.replace(per_layer, basis=basis, source_layer=2, position=-1)


def vectors(path: Path) -> dict[str, list[float]]:
    found = gguf.GGUFReader(path).tensors
    assert {each.tensor_type for each in found} == {gguf.GGMLQuantizationType.F32}
    assert {each.data.ndim for each in found} == {1}
    return {each.name: each.data.tolist() for each in found}


def test_block_i_is_direction_i_and_there_is_none_for_block_0(per_layer, tmp_path):
    """llama.cpp adds direction.<il> to the output of block il, counted from 0, and has no 0."""
    layers, _ = export_control_vector(per_layer, tmp_path / "v.gguf", model_type="llama")
    assert layers == (1, 2, 3)
    assert vectors(tmp_path / "v.gguf") == {
        "direction.1": [0.0, 2.0, 0.0, 0.0],
        "direction.2": [0.0, 0.0, 3.0, 0.0],
        "direction.3": [0.0, 0.0, 0.0, 4.0],
    }


def test_a_direction_selected_at_one_layer_is_added_at_that_layer_alone(selected, tmp_path):
    """Its sign points towards refusal, its length is the distance of the class means there."""
    export_control_vector(selected, tmp_path / "v.gguf")
    (found,) = vectors(tmp_path / "v.gguf").items()
    assert found[0] == "direction.2"
    np.testing.assert_allclose(found[1], [1.8, 0.0, -2.4, 0.0], rtol=1e-7)


def test_the_file_says_what_it_is(per_layer, tmp_path):
    export_control_vector(per_layer, tmp_path / "v.gguf", model_type="qwen2")
    fields = gguf.GGUFReader(tmp_path / "v.gguf").fields
    assert fields["general.architecture"].contents() == "controlvector"
    assert fields["controlvector.model_hint"].contents() == "qwen2"
    assert fields["controlvector.layer_count"].contents() == 3
    assert "Additive only" in fields["general.description"].contents()


def test_the_file_names_the_behaviour_that_it_raises(per_layer, tmp_path):
    for name, noun in (("refusal", None), ("toxicity", "toxicity")):
        facts = {} if noun is None else {"noun": noun}
        found = dataclasses.replace(per_layer, provenance=facts)
        export_control_vector(found, tmp_path / name)
        said = gguf.GGUFReader(tmp_path / name).fields["general.description"].contents()
        assert f"towards {name};" in said


def test_equal_directions_give_equal_bytes(per_layer, tmp_path):
    export_control_vector(per_layer, tmp_path / "v.gguf", model_type="llama")
    assert hashlib.sha256((tmp_path / "v.gguf").read_bytes()).hexdigest() == GOLDEN


def test_what_a_control_vector_cannot_hold_is_a_deviation(per_layer, tmp_path):
    wide = {layer: torch.eye(4, dtype=torch.float64)[:2] for layer in per_layer.basis}
    seen: list[object] = []
    with listening(seen.append):
        _, deviations = export_control_vector(
            dataclasses.replace(per_layer, basis=wide), tmp_path / "v.gguf"
        )
    assert [event.deviation for event in seen if isinstance(event, DeviationRecorded)] == [
        *deviations
    ]
    assert [each.done for each in deviations] == [
        "3 of them, without embedding, 0",
        "the first of each layer",
    ]


@pytest.mark.parametrize("layer", ["embedding", 0])
def test_a_direction_where_llama_cpp_adds_nothing_is_refused(selected, tmp_path, layer):
    early = dataclasses.replace(selected, source_layer=layer)
    with pytest.raises(DirectionError, match=f"selected at layer {layer}.*from block 1 on"):
        export_control_vector(early, tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_a_direction_without_a_length_is_refused(selected, tmp_path):
    flat = dataclasses.replace(selected, scale={})
    with pytest.raises(DirectionError, match="layer 2 has no scale"):
        export_control_vector(flat, tmp_path / "v.gguf")


def test_what_exists_is_kept_without_force(selected, tmp_path):
    (tmp_path / "v.gguf").write_text("mine")
    with pytest.raises(StorageError, match="already exists"):
        export_control_vector(selected, tmp_path / "v.gguf")
    assert (tmp_path / "v.gguf").read_text() == "mine"
    export_control_vector(selected, tmp_path / "v.gguf", force=True)
    assert "direction.2" in vectors(tmp_path / "v.gguf")
