"""The kernel over the blocks is the line it claims, and directions lie between neighbours."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from obliteratus.directions.kernel import Kernel, component_groups, interpolated, kernel_strengths
from obliteratus.errors import DirectionError
from obliteratus.models.anatomy import WeightSite

E = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("layer", "weight"), [(10, 1.0), (9, 0.8), (8, 0.6), (6, 0.2), (5, 0.0), (14, 0.2), (15, 0.0)]
)
def test_strengths_fall_on_a_line_to_the_smallest_and_are_zero_beyond(
    layer: int, weight: float
) -> None:
    assert Kernel(1.0, 10.0, 0.2, 4.0).weight(layer) == pytest.approx(weight)


def test_a_peak_between_two_blocks_gives_both_the_same() -> None:
    kernel = Kernel(1.2, 3.5, 0.0, 2.0)
    assert [kernel.weight(layer) for layer in range(7)] == pytest.approx(
        [0.0, 0.0, 0.3, 0.9, 0.9, 0.3, 0.0]
    )


@given(
    largest=st.floats(0, 1.5),
    share=st.floats(0, 1),
    position=st.floats(0, 31),
    distance=st.floats(0.5, 31),
    layer=st.integers(0, 30),
)
def test_strengths_are_within_the_ends_and_do_not_grow_away_from_the_peak(
    largest: float, share: float, position: float, distance: float, layer: int
) -> None:
    kernel = Kernel(largest, position, share * largest, distance)
    here, further = kernel.weight(layer), kernel.weight(layer + (1 if layer >= position else -1))
    assert further <= here + 1e-12
    if abs(layer - position) <= distance:
        assert share * largest - 1e-12 <= here <= largest
    else:
        assert here == 0.0


@given(away=st.floats(0, 40), distance=st.floats(0.5, 31))
def test_a_kernel_is_symmetric(away: float, distance: float) -> None:
    assume(abs(away - distance) > 1e-9)  # rounding decides which side of the end it is
    left, right = (Kernel(1.0, 50 + side * away, 0.25, distance).weight(50) for side in (-1, 1))
    assert left == pytest.approx(right)


def test_a_kernel_without_a_slope_is_refused() -> None:
    with pytest.raises(DirectionError, match=r"falls off over 0 blocks has no slope"):
        Kernel(1.0, 3.0, 0.0, 0.0)


def test_a_whole_index_gives_the_direction_of_that_layer() -> None:
    for layer in range(4):
        torch.testing.assert_close(interpolated(tuple(E), float(layer)), E[layer])


def test_a_quarter_of_the_way_is_three_parts_of_the_one_below() -> None:
    wanted = torch.tensor([0.0, 3.0, 1.0, 0.0], dtype=torch.float64) / math.sqrt(10)
    torch.testing.assert_close(interpolated(tuple(E), 1.25), wanted)


@given(index=st.floats(0, 3))
def test_what_lies_between_has_unit_length_and_no_other_part(index: float) -> None:
    mixed = interpolated(tuple(E), index)
    assert float(mixed.norm()) == pytest.approx(1)
    near = {math.floor(index), math.ceil(index)}
    assert all(float(mixed[layer]) == 0 for layer in range(4) if layer not in near)


@pytest.mark.parametrize("index", [-0.1, 3.1, math.nan])
def test_an_index_without_a_direction_is_refused(index: float) -> None:
    with pytest.raises(DirectionError, match=r"no direction at .*: there are those of 0 to 3"):
        interpolated(tuple(E), index)


def test_opposite_directions_have_nothing_between() -> None:
    with pytest.raises(DirectionError, match=r"0 and 1 point opposite ways"):
        interpolated((E[0], -E[0]), 0.5)


def writer(module: str, component, layer: int | None) -> WeightSite:
    return WeightSite(f"{module}.weight", module, "writer", component, "out_in", layer)


def test_components_that_share_a_module_in_one_block_share_their_kernel() -> None:
    sites = [
        writer("wte", "embedding", None),
        writer("h.0.attn", "attention", 0),
        writer("h.0.mlp", "mlp", 0),
        writer("h.1.ffn", "mlp", 1),
        writer("h.1.ffn", "experts", 1),
    ]
    assert component_groups(sites) == (("attention",), ("experts", "mlp"))
    assert component_groups(sites[:3]) == (("attention",), ("mlp",))


def test_every_block_and_component_gets_the_strength_of_its_kernel() -> None:
    kernels = {"attention": Kernel(1.0, 0.0, 0.5, 1.0), "mlp": Kernel(0.4, 2.0, 0.2, 1.0)}
    found = kernel_strengths(kernels, 3)
    assert {
        layer: {component: values.tolist() for component, values in parts.items()}
        for layer, parts in found.items()
    } == {
        0: {"attention": [1.0], "mlp": [0.0]},
        1: {"attention": [0.5], "mlp": [0.2]},
        2: {"attention": [0.0], "mlp": [0.4]},
    }
