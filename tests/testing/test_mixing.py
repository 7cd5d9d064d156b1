"""What scalars mix out of given rows lies in their span; anything else shows at its full size."""

import math

import pytest
import torch

from obliteratus.testing.mixing import outside_span

GENERATOR = torch.Generator().manual_seed(4)
PARTS = tuple(torch.randn(2, 5, 9, generator=GENERATOR, dtype=torch.float64) for _ in range(4))


def test_a_mix_by_other_scalars_at_every_row_is_inside():
    scalars = torch.randn(4, 2, 5, 1, generator=GENERATOR, dtype=torch.float64)
    mixed = sum(scalar * part for scalar, part in zip(scalars, PARTS, strict=True))
    assert outside_span(mixed, PARTS) < 1e-14


def test_parts_of_very_different_size_count_alike():
    tiny = (PARTS[0] * 1e-9, *PARTS[1:])
    assert outside_span(PARTS[0], tiny) < 1e-12


def test_the_worst_row_decides():
    stream = PARTS[0].clone()
    away = torch.linalg.qr(torch.stack(PARTS, -1)[1, 3], mode="complete").Q[:, -1]
    stream[1, 3] = 3 * stream[1, 3] / stream[1, 3].norm() + 4 * away
    assert math.isclose(outside_span(stream, PARTS), 0.8, rel_tol=1e-12)


def test_a_missing_part_and_a_scale_per_channel_are_outside():
    assert outside_span(PARTS[0], PARTS[1:]) > 0.3
    turned = PARTS[0] * torch.linspace(0.5, 1.5, 9, dtype=torch.float64)
    assert outside_span(turned, PARTS) > 0.1


def test_nothing_can_be_outside_as_many_parts_as_coordinates():
    with pytest.raises(AssertionError):
        outside_span(torch.ones(1, 4).double(), [torch.ones(1, 4).double()] * 4)
