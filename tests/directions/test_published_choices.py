"""Golden test: the published choices follow from the published scores by our rule."""

import json
import os
from pathlib import Path

import pytest

from obliteratus.directions.selection import Score, choose

TABLES = Path(os.environ.get("OBLITERATUS_GOLDEN", "../shared/data")) / "arditi"
CHOICES = {
    "gemma-2b-it": (-2, 10),
    "llama-2-7b-chat-hf": (-1, 14),
    "meta-llama-3-8b-instruct": (-5, 12),
    "qwen-1_8b-chat": (-2, 15),
    "yi-6b-chat": (-5, 20),
}


def table(model: str) -> list[Score]:
    file = TABLES / model / "direction_evaluations.json"
    if not file.exists():
        pytest.skip("the published tables are not beside this checkout (tests/QUARANTINES.md)")
    return [
        Score(
            row["layer"],
            row["position"],
            row["refusal_score"],
            row["steering_score"],
            row["kl_div_score"],
        )
        for row in json.loads(file.read_text())
    ]


@pytest.mark.parametrize(("model", "choice"), CHOICES.items())
def test_rule_reproduces_the_published_choice(model: str, choice: tuple[int, int]) -> None:
    scores = table(model)
    n_layers = 1 + max(score.block_input for score in scores)
    winner = scores[choose(scores, n_layers)]
    assert (winner.position, winner.block_input) == choice


def test_the_choices_need_the_gates() -> None:
    changed = 0
    for model, choice in CHOICES.items():
        scores = table(model)
        n_layers = 1 + max(score.block_input for score in scores)
        free = scores[choose(scores, n_layers, max_kl=1e9, max_depth=1.0, min_induce=-1e9)]
        changed += (free.position, free.block_input) != choice
    assert changed >= 3
