"""Keys and values that are moved once and then written in place."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from obliteratus.errors import MeasurementError
from obliteratus.measure.answer_cache import answer_cache

LENGTHS = torch.tensor([5, 4, 2])
WIDTH = 3


def prompts(layers: int = 2) -> tuple[list[DynamicCache], torch.Tensor]:
    """Rows of 5 and 4 tokens in one part, of 2 in another; padding is NaN."""
    states = torch.full((layers, 3, 2, 5, WIDTH), torch.nan)
    for row, length in enumerate(LENGTHS.tolist()):
        states[:, row, :, :length] = torch.randn(layers, 2, length, WIDTH)
    parts = [DynamicCache(), DynamicCache()]
    for layer in range(layers):
        parts[0].update(states[layer, :2], -states[layer, :2], layer)
        parts[1].update(states[layer, 2:, :, :2], -states[layer, 2:, :, :2], layer)
    return parts, states


def test_rows_end_in_the_same_column_and_no_padding_is_among_them() -> None:
    parts, states = prompts()
    cache = answer_cache(parts, LENGTHS, room=4)
    assert cache.get_seq_length() == 5
    for index, layer in enumerate(cache.layers):
        for row, length in enumerate(LENGTHS.tolist()):
            assert torch.equal(layer.keys[row, :, 5 - length :], states[index, row, :, :length])
            assert torch.equal(layer.values[row, :, 5 - length :], -states[index, row, :, :length])


def test_tokens_are_written_in_place_behind_the_others() -> None:
    parts, _ = prompts()
    cache = answer_cache(parts, LENGTHS, room=2)
    start = cache.layers[0].keys.data_ptr()
    before = cache.layers[0].keys.clone()
    new = torch.randn(2, 3, 2, 1, WIDTH)
    for token in new:
        keys, values = cache.update(token, -token, 0)
    assert keys.data_ptr() == start
    assert torch.equal(keys[:, :, 5:], torch.cat([*new], dim=2))
    assert torch.equal(values, -keys)
    assert torch.equal(keys[:, :, :5].nan_to_num(), before.nan_to_num())
    assert cache.get_seq_length() == 7


def test_dropped_rows_leave_the_others_and_their_room() -> None:
    parts, states = prompts()
    cache = answer_cache(parts, LENGTHS, room=1)
    cache.reorder_cache(torch.tensor([2, 0]))
    token = torch.randn(2, 2, 1, WIDTH)
    keys, _ = cache.update(token, token, 1)
    assert keys.shape[:3] == (2, 2, 6)
    assert torch.equal(keys[0, :, 3:5], states[1, 2, :, :2])
    assert torch.equal(keys[1, :, :5], states[1, 0])
    assert torch.equal(keys[:, :, 5:], token)


def test_the_prompts_are_emptied() -> None:
    parts, _ = prompts()
    answer_cache(parts, LENGTHS, room=1)
    assert all(layer.keys is None and layer.values is None for layer in parts[0].layers)


def test_a_layer_without_keys_and_values_is_an_error() -> None:
    parts, _ = prompts()
    parts[1].layers[1].reset()
    with pytest.raises(MeasurementError, match="layer 1 keeps a DynamicLayer without keys"):
        answer_cache(parts, LENGTHS, room=1)
