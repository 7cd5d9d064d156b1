"""Fingerprints see every change that could change a measurement, and nothing else."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from obliteratus.measure.head import head_of
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify.identity import (
    WORDS,
    head_fingerprint,
    subject_of,
    tensor_fingerprint,
    weights_fingerprint,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 3000), data=st.data())
def test_any_single_change_is_seen(dtype: torch.dtype, size: int, data: st.DataObject):
    tensor = torch.arange(size).to(dtype)
    changed = tensor.clone()
    place = data.draw(st.integers(0, size - 1))
    changed[place] = 0 if changed[place] != 0 else 1
    assert tensor_fingerprint(tensor) == tensor_fingerprint(tensor.clone())
    assert tensor_fingerprint(tensor) != tensor_fingerprint(changed)


def test_order_shape_dtype_and_zeros_matter():
    tensor = torch.tensor([1.0, 2.0, 3.0, 4.0])
    others = [
        tensor.flip(0),
        tensor.reshape(2, 2),
        tensor.double(),
        torch.cat([tensor, torch.zeros(4)]),
    ]
    assert len({tensor_fingerprint(t) for t in (tensor, *others)}) == 5


def test_blocks_are_not_interchangeable():
    tensor = torch.zeros(4 * WORDS)
    tensor[0] = 1.0
    assert tensor_fingerprint(tensor) != tensor_fingerprint(tensor.roll(2 * WORDS))


def test_layout_in_memory_does_not_matter():
    tensor = torch.randn(6, 5)
    assert tensor_fingerprint(tensor.T) == tensor_fingerprint(tensor.T.contiguous())
    assert tensor_fingerprint(tensor[1:]) == tensor_fingerprint(tensor[1:].clone())


def test_scalars_and_empty_tensors_have_fingerprints():
    assert tensor_fingerprint(torch.tensor(1.0)) != tensor_fingerprint(torch.tensor(2.0))
    assert tensor_fingerprint(torch.zeros(0)) != tensor_fingerprint(torch.zeros(1))


def test_an_edit_in_place_changes_who_the_model_is_but_not_its_head():
    model = tiny_model("llama", dtype=torch.float32)
    before = subject_of(model, head_of(model))
    model.module.get_parameter(model.anatomy.writers[1].name).data[0, 0] += 1e-3
    after = subject_of(model, head_of(model))
    assert before.weights != after.weights
    assert (before.head, before.vocabulary) == (after.head, after.vocabulary)


def test_the_configuration_is_part_of_the_model():
    model = tiny_model("llama", dtype=torch.float32)
    before = weights_fingerprint(model)
    model.module.config.rms_norm_eps *= 2
    assert weights_fingerprint(model) != before


def test_where_a_model_was_loaded_from_is_not():
    model = tiny_model("gpt2", dtype=torch.float32)
    source = dataclasses.replace(model.source, identifier="elsewhere", fingerprint="other")
    moved = dataclasses.replace(model, module=copy.deepcopy(model.module), source=source)
    moved.module.config.name_or_path = "elsewhere"
    assert weights_fingerprint(moved) == weights_fingerprint(model)


def test_a_soft_cap_is_part_of_the_head():
    head = head_of(tiny_model("llama"))
    assert head_fingerprint(head) != head_fingerprint(dataclasses.replace(head, softcap=9.0))
