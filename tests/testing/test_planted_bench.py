"""The bench of a planted model gives what it was given, and fails where it is asked for more."""

import pytest

from obliteratus.testing.planted_bench import planted_bench
from obliteratus.testing.planted_transformer import planted


def test_what_was_not_given_cannot_be_asked_for() -> None:
    plant = planted("linear")
    bench = planted_bench(plant, plant.prompts(8), prompts=4)
    for name in ("activations", "directions"):
        with pytest.raises(AssertionError, match="was not to need"):
            getattr(bench, name)
    assert bench.tokens == plant.refusal_tokens
    assert len(bench.subset.harmful) == 4
    assert bench.splits.fit is bench.splits.test


def test_prompts_to_fit_are_probed_when_they_are_asked_for() -> None:
    plant = planted("linear")
    prompts = plant.prompts(8)
    bench = planted_bench(plant, prompts, fit=prompts)
    assert bench.activations.harmful.prompt_ids == tuple(each.id for each in prompts.harmful)
