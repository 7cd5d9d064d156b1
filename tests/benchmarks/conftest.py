"""Rows with made-up figures."""

from collections.abc import Callable

import pytest
from fronts.rows import Key, Measures, Row, Seconds

from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

TODAY = Key(settings="these", code="this")
Make = Callable[..., Row]


@pytest.fixture
def make() -> Make:
    """Return a function that makes a row: refused of 128, KL, and anything else by name."""

    def row(name: str, refused: int = 10, kl: float = 0.1, **values: object) -> Row:
        share = wilson(refused, 128)
        near = Estimate(kl, (0.8 * kl, 1.25 * kl), 128)
        measures = Measures(
            original=wilson(100, 128),
            refusal=share,
            success=wilson(128 - refused, 128),
            degenerate=wilson(0, 128),
            kl_first=near,
            kl_sequence=Estimate(2 * kl, (kl, 3 * kl), 64),
            perplexity=Estimate(1.02, (1.01, 1.03), 48),
        )
        base = Row(
            model="m",
            name=name,
            tool="obliteratus",
            key=TODAY,
            measures=measures,
            seconds=Seconds(find=90, edit=6, verify=120),
        )
        return base.model_copy(update=values)

    return row
