"""Extractors on synthetic activations whose answer is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from obliteratus.directions.delta_reliability import delta_reliability
from obliteratus.directions.difference_of_means import difference_of_means
from obliteratus.directions.paired_svd import paired_svd
from obliteratus.directions.placement import placed
from obliteratus.directions.samples import EXTRACTORS, Samples
from obliteratus.directions.whitened_svd import shrunk_spectrum, whitened_svd
from obliteratus.errors import DirectionError, UsageError

WIDTH = 48


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(
    seed: int = 0,
    *,
    n: int = 64,
    shift: float = 6.0,
    noise: Tensor | None = None,
    is_paired: bool = True,
) -> tuple[Samples, Tensor]:
    """Return samples whose classes differ by ``shift`` along a unit vector, and that vector."""
    source = generator(seed)
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=source), dim=0)
    scale = torch.ones(WIDTH) if noise is None else noise
    harmless = torch.randn(n, WIDTH, generator=source) * scale
    harmful = torch.randn(n, WIDTH, generator=source) * scale + shift * direction
    delta = harmful.double().mean(0) - harmless.double().mean(0)
    return Samples(delta, harmful, harmless, is_paired), direction.double()


@pytest.mark.parametrize("name", ["difference_of_means", "paired_svd", "whitened_svd"])
@pytest.mark.parametrize("is_paired", [True, False])
def test_planted_direction_is_found(name: str, is_paired: bool) -> None:
    for seed in range(5):
        samples, direction = planted(seed, is_paired=is_paired)
        rows = EXTRACTORS[name](samples, max_rank=3)
        assert float(rows[0] @ direction) > 0.95
        assert torch.allclose(rows @ rows.T, torch.eye(3, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("name", ["difference_of_means", "paired_svd", "whitened_svd"])
def test_null_samples_give_no_particular_direction(name: str) -> None:
    for seed in range(5):
        samples, direction = planted(seed, shift=0.0)
        rows = EXTRACTORS[name](samples, max_rank=1)
        assert abs(float(rows[0] @ direction)) < 0.6


def test_row_zero_points_towards_refusal() -> None:
    for extract in (difference_of_means, paired_svd, whitened_svd):
        samples, _ = planted()
        assert float(extract(samples, max_rank=2)[0] @ samples.delta) > 0


def test_a_rogue_coordinate_captures_the_svd_but_not_the_difference_in_means() -> None:
    noise = torch.ones(WIDTH)
    noise[7] = 40.0
    samples, direction = planted(noise=noise, n=256)
    rogue = torch.zeros(WIDTH, dtype=torch.float64)
    rogue[7] = 1.0
    assert abs(float(paired_svd(samples, max_rank=1)[0] @ rogue)) > 0.99
    white = whitened_svd(samples, max_rank=2)
    assert float((white @ direction).norm()) > 0.9


def test_further_rows_of_the_difference_in_means_are_orthogonal_to_it() -> None:
    samples, _ = planted()
    rows = difference_of_means(samples, max_rank=4)
    assert torch.allclose(rows[0], samples.delta / samples.delta.norm())
    assert float((rows[1:] @ samples.delta).abs().max()) < 1e-9


def test_second_planted_direction_is_found_by_whitening_under_anisotropic_noise() -> None:
    source = generator(3)
    basis = torch.linalg.qr(torch.randn(WIDTH, 2, generator=source)).Q.T
    noise = torch.ones(WIDTH)
    noise[:8] = 6.0
    n = 400
    strength = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)[:, None]
    harmless = torch.randn(n, WIDTH, generator=source) * noise
    harmful = torch.randn(n, WIDTH, generator=source) * noise
    harmful = harmful + 6 * basis[0] + 5 * strength * basis[1]
    delta = harmful.double().mean(0) - harmless.double().mean(0)
    samples = Samples(delta, harmful, harmless, is_paired=True)
    whitened = float((whitened_svd(samples, max_rank=2) @ basis[1].double()).norm())
    plain = float((paired_svd(samples, max_rank=2) @ basis[1].double()).norm())
    assert whitened > 0.8
    assert whitened > plain + 0.2


def test_covariance_is_shrunk_when_prompts_are_few() -> None:
    _, _, few = shrunk_spectrum(planted(n=12)[0])
    values, _, many = shrunk_spectrum(planted(n=600, noise=torch.linspace(1, 5, WIDTH))[0])
    assert few > many
    assert bool((values > 0).all())


def test_reliability_tells_a_planted_difference_from_none() -> None:
    good = delta_reliability(planted()[0], seed=0)
    assert good["split_half_cosine"].verdict == "supported"
    assert good["permutation_p"].verdict == "supported"
    assert good["bootstrap_angle"].value < 20
    unpaired = delta_reliability(planted(is_paired=False)[0], seed=0)
    assert unpaired["split_half_cosine"].verdict == "supported"
    assert unpaired["permutation_p"].verdict == "supported"


@pytest.mark.parametrize("is_paired", [True, False])
def test_reliability_reports_nothing_on_null_samples(is_paired: bool) -> None:
    alarms = 0
    for seed in range(8):
        none = delta_reliability(planted(seed, shift=0.0, is_paired=is_paired)[0], seed=seed)
        alarms += none["permutation_p"].verdict == "supported"
        assert none["split_half_cosine"].verdict == "undetermined"
    assert alarms <= 2


def test_top_coordinate_share_names_a_rogue_coordinate() -> None:
    samples, _ = planted()
    delta = torch.zeros(WIDTH, dtype=torch.float64)
    delta[3] = 1.0
    rogue = Samples(delta, samples.harmful, samples.harmless, is_paired=True)
    assert delta_reliability(rogue, seed=0)["top_coordinate_share"].value == 1.0
    assert delta_reliability(samples, seed=0)["top_coordinate_share"].value < 0.3


def test_equal_classes_and_unknown_extractors_are_errors() -> None:
    samples, _ = planted()
    equal = Samples(0 * samples.delta, samples.harmful, samples.harmful, is_paired=True)
    with pytest.raises(DirectionError, match="do not differ"):
        difference_of_means(equal)
    with pytest.raises(UsageError, match="Did you mean 'paired_svd'"):
        EXTRACTORS["pair_svd"]


def with_means(samples: Samples, count: int, seed: int = 1) -> Samples:
    """Return ``samples`` with long random harmless means of ``count`` layers, one their own."""
    means = 40 * torch.randn(count, WIDTH, generator=generator(seed), dtype=torch.float64)
    means[0] = samples.harmless.double().mean(0)
    return replace(samples, harmless_means=means)


def test_a_projected_direction_moves_the_harmless_mean_of_no_layer() -> None:
    samples, planted_direction = planted()
    samples = with_means(samples, 5)
    rows = EXTRACTORS["projected_difference_of_means"](samples, max_rank=3)
    assert rows.shape == (3, WIDTH)
    assert float((rows @ rows.T - torch.eye(3)).abs().max()) < 1e-12
    assert samples.harmless_means is not None
    assert float((rows @ samples.harmless_means.T).abs().max()) < 1e-9
    assert float(rows[0] @ planted_direction) > 0.9
    plain = EXTRACTORS["difference_of_means"](samples, max_rank=1)
    assert float((plain @ samples.harmless_means.T).abs().max()) > 1


def test_without_the_other_layers_only_the_own_mean_is_projected_out() -> None:
    samples, _ = planted()
    row = EXTRACTORS["projected_difference_of_means"](samples, max_rank=1)
    mean = samples.harmless.double().mean(0)
    assert abs(float(row[0] @ mean)) < 1e-9
    expected = samples.delta - (samples.delta @ mean) * mean / (mean @ mean)
    assert torch.allclose(row[0], expected / expected.norm())


def test_a_difference_within_the_harmless_means_is_refused() -> None:
    samples, _ = planted()
    shared = replace(samples, harmless_means=samples.delta[None])
    with pytest.raises(DirectionError, match="do not differ outside the harmless means"):
        EXTRACTORS["projected_difference_of_means"](shared, max_rank=1)


def test_the_published_projection_leaves_only_its_own_mean_in_place() -> None:
    samples = with_means(planted()[0], 5)
    row = EXTRACTORS["source_projected_difference_of_means"](samples, max_rank=1)[0]
    mean = samples.harmless.double().mean(0)
    expected = samples.delta - (samples.delta @ mean) * mean / (mean @ mean)
    assert torch.allclose(row, expected / expected.norm())
    assert samples.harmless_means is not None
    assert float((samples.harmless_means[1:] @ row).abs().min()) > 0.1


def test_a_biprojected_direction_is_orthogonal_to_the_means_of_source_and_target() -> None:
    samples, planted_direction = planted()
    samples = with_means(samples, 5)
    name = "biprojected_difference_of_means"
    rows = EXTRACTORS[name](samples, max_rank=2)
    layers = ("embedding", 0, 1, 2, 3, 4)
    bases = placed(name, samples, rows, layers)
    assert tuple(bases) == layers
    assert samples.harmless_means is not None
    own = samples.harmless.double().mean(0)
    for block, mean in enumerate(samples.harmless_means):
        basis = bases[block]
        assert float((basis @ mean).abs().max()) < 1e-9
        assert float((basis @ own).abs().max()) < 1e-9
        assert torch.allclose(basis @ basis.T, torch.eye(2).double(), atol=1e-12)
        assert float(basis[0] @ planted_direction) > 0.8
    assert not torch.allclose(bases[1], bases[2])
    assert torch.equal(bases[0], rows)  # block 0 is the source here
    assert torch.equal(bases["embedding"], rows)


def test_other_directions_are_the_same_at_every_layer() -> None:
    samples, _ = planted()
    rows = difference_of_means(samples)
    bases = placed("difference_of_means", samples, rows, ("embedding", 0, 1))
    assert all(basis is rows for basis in bases.values())


def test_a_biprojection_needs_the_means_and_something_outside_them() -> None:
    samples, _ = planted()
    name = "biprojected_difference_of_means"
    rows = EXTRACTORS[name](samples, max_rank=1)
    with pytest.raises(DirectionError, match="needs the harmless means of all blocks"):
        placed(name, samples, rows, (0,))
    within = replace(samples, harmless_means=rows + samples.harmless.double().mean(0))
    with pytest.raises(DirectionError, match="lies within the harmless mean of block 0"):
        placed(name, within, rows, (0,))
