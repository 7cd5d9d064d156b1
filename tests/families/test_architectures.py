"""Every architecture keeps the promise of the page that is made from these figures."""

from pathlib import Path

import pytest

from obliteratus.testing.exactness import exactness
from obliteratus.testing.tiny import MODEL_TYPES

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_edit_is_exact_in_memory_and_after_a_round_trip(model_type: str, tmp_path: Path) -> None:
    row = exactness(model_type, tmp_path)
    assert row.is_exact, row


def test_the_page_has_a_row_for_every_model_type() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(MODEL_TYPES)
