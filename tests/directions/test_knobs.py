"""Knobs belong to one extractor, and one that it does not have is an error."""

import pytest
import torch

from obliteratus.directions.extraction import extraction
from obliteratus.directions.samples import Samples
from obliteratus.errors import UsageError
from obliteratus.settings import settings_from, with_overrides


def samples() -> Samples:
    source = torch.Generator().manual_seed(0)
    harmful, harmless = torch.randn(2, 40, 8, generator=source)
    return Samples(harmful.double().mean(0) - harmless.double().mean(0), harmful, harmless, True)


def test_a_knob_reaches_its_extractor() -> None:
    given = samples()
    plain = extraction("winsorised_norms", {})(given, max_rank=1)
    strict = extraction("winsorised_norms", {"quantile": 0.6})(given, max_rank=1)
    assert not torch.allclose(plain, strict)
    assert torch.equal(plain, extraction("winsorised_norms", {"quantile": 0.99})(given))


def test_a_knob_of_another_extractor_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'difference_of_means' has no knob 'quantile' \(it has"):
        extraction("difference_of_means", {"quantile": 0.9})
    with pytest.raises(UsageError, match=r"its knobs are quantile\)\. Did you mean 'quantile'\?"):
        extraction("winsorised_coordinates", {"quantil": 0.9})
    with pytest.raises(UsageError, match="has no knob 'max_rank'"):
        extraction("difference_of_means", {"max_rank": 2})


@pytest.mark.parametrize("value", [0.5, 1.01, float("nan")])
def test_a_value_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match=r"knob quantile=.* of the extractor 'winsorised_norms'"):
        extraction("winsorised_norms", {"quantile": value})


def test_an_unknown_extractor_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'geometric_median'"):
        extraction("geometric_mean", {})


def test_knobs_are_set_like_any_other_setting_and_survive_a_record() -> None:
    settings = settings_from(with_overrides({}, ["distill.knobs={quantile: 0.95}"]))
    assert settings.distill.knobs == {"quantile": 0.95}
    assert settings_from(settings.model_dump(mode="json")) == settings
    with pytest.raises(UsageError, match=r"setting distill\.knobs"):
        settings_from(with_overrides({}, ["distill.knobs={quantile: high}"]))
