"""Directions of a self-organising map."""

import pytest
import torch
from torch import Tensor

from obliteratus.directions.difference_of_means import difference_of_means
from obliteratus.directions.extraction import extraction
from obliteratus.directions.samples import Samples
from obliteratus.directions.som import som
from obliteratus.errors import DirectionError, UsageError

WIDTH = 40


def of(harmful: Tensor, harmless: Tensor) -> Samples:
    delta = harmful.double().mean(0) - harmless.double().mean(0)
    return Samples(delta, harmful, harmless, is_paired=False)


def arc(seed: int = 0, n: int = 240) -> tuple[Samples, Tensor]:
    """Return harmful prompts on an arc in the plane of the returned axes 0 and 1, and the axes.

    Axis 2 is one along which all prompts vary, less than the arc is long.
    """
    source = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(WIDTH, 3, generator=source)).Q.T
    angle = torch.linspace(-1.2, 1.2, n)[torch.randperm(n, generator=source)]
    noise = 0.5 * torch.randn(2, n, WIDTH, generator=source)
    spread = 1.5 * torch.randn(2, n, 1, generator=source) * axes[2]
    bend = angle.cos()[:, None] * axes[0] + angle.sin()[:, None] * axes[1]
    return of(10 * bend + noise[0] + spread[0], noise[1] + spread[1]), axes.double()


def test_one_neuron_is_the_difference_in_means() -> None:
    samples, _ = arc()
    assert torch.allclose(som(samples, side=1), difference_of_means(samples), atol=1e-12)
    assert len(som(samples, side=1, max_rank=4)) == 1


def test_the_plane_of_a_curved_manifold_is_found_by_two_rows() -> None:
    for seed in range(4):
        samples, axes = arc(seed)
        rows = som(samples, max_rank=2)
        assert float((rows @ axes[:2].T).square().sum()) > 1.9  # of 2: the whole plane


def test_row_zero_leans_on_the_mean_difference_more_than_any_other() -> None:
    samples, _ = arc()
    delta = samples.delta / samples.delta.norm()
    rows = som(samples, max_rank=6)
    assert float(rows[0] @ delta) > 0.99
    assert float((rows @ delta).min()) >= 0
    assert float((rows[1:] @ delta).max()) < 0.2
    assert float((rows @ rows.T - torch.eye(6)).abs().max()) < 1e-12


def test_groups_of_prompts_get_a_direction_each() -> None:
    for seed in range(4):
        source = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(WIDTH, 4, generator=source)).Q.T
        label = torch.arange(200) % 4
        harmful = 9 * axes[label] + 0.3 * torch.randn(200, WIDTH, generator=source)
        samples = of(harmful, 0.3 * torch.randn(200, WIDTH, generator=source))
        rows = extraction("som", {"side": 4})(samples, max_rank=4)
        assert float((rows @ axes.double().T).square().sum()) > 3.9  # of 4
        coarse = extraction("som", {"side": 2})(samples, max_rank=8)
        assert len(coarse) <= 4


def test_the_order_of_the_prompts_does_not_matter() -> None:
    samples, _ = arc()
    turn = torch.randperm(len(samples.harmful), generator=torch.Generator().manual_seed(1))
    other = of(samples.harmful[turn], samples.harmless[turn.flip(0)])
    assert torch.allclose(som(other, max_rank=4), som(samples, max_rank=4), atol=1e-6)


def test_equal_prompts_give_one_direction() -> None:
    samples, _ = arc()
    same = of(samples.harmful[:1].expand(20, -1), samples.harmless)
    assert len(som(same, max_rank=5)) == 1
    assert torch.allclose(som(same, side=16), som(same, side=1))


def test_a_map_without_a_difference_or_of_no_size_is_refused() -> None:
    samples, _ = arc()
    with pytest.raises(DirectionError, match="do not differ"):
        som(of(samples.harmful, samples.harmful))
    with pytest.raises(UsageError, match="knob side=0"):
        extraction("som", {"side": 0})
