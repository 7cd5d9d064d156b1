"""What an edit leaves reaches the report, the screen, the page and the words."""

import dataclasses
import io

from rich.console import Console

from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.edits.residual import Energy, LayerResidual
from obliteratus.events import Deviation
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.testing.tiny import tiny_model
from obliteratus.verify.compare import compare
from obliteratus.verify.formatting import tiny_share
from obliteratus.verify.html import as_html
from obliteratus.verify.left import edit_facts, left_lines
from obliteratus.verify.records.edit import EditFacts, LayerLeft, NormLeft
from obliteratus.verify.report import Report, load_report, save_report
from obliteratus.verify.terminal import as_screen

LEAK = Deviation("proof", "nothing", "went on with a leak: 0.2 of the stream is left", "allowed")
SUBSET = EditFacts(
    layers=(
        LayerLeft(
            layer="embedding", before=0.01, before_largest=0.1, after=0.01, after_largest=0.1
        ),
        LayerLeft(layer=0, before=0.3, before_largest=0.5, after=0.024, after_largest=0.25),
        LayerLeft(layer=1, before=0.3, before_largest=0.5, after=1e-12, after_largest=1e-11),
    ),
    norm=NormLeft(norm="row", left=2e-8, largest=0.45, matrix="blocks.1.mlp"),
    shares={"3": 0.912, "4": 0.85},
    leaks=("went on with a leak: 0.2 of the stream is left",),
)


def report(facts: EditFacts) -> Report:
    original, edited, head = planted(Plant(prompts=8, layers=4, documents=6))
    return compare(original, edited, edited_head=head, edit=facts)


def screen(made: Report) -> str:
    console = Console(width=80, color_system=None, record=True, file=io.StringIO())
    console.print(as_screen(made))
    return " ".join(console.export_text().split())


def test_receipts_tell_whether_refusal_was_to_grow() -> None:
    for strength, amplifies in ((-0.5, True), (1.0, False), (0.0, False)):
        model = tiny_model("llama")
        directions = random_directions(model)
        receipt = excise(model, plan(model, directions, EditSettings(strength=strength)))
        assert edit_facts([receipt], directions).amplifies is amplifies


def test_facts_come_from_the_receipts_and_the_directions() -> None:
    model = tiny_model("llama")
    receipt = excise(model, plan(model, random_directions(model), EditSettings(norm="frobenius")))
    row = LayerResidual(1, Energy(0.3, 0.6), Energy(0.1, 0.2))
    receipt = dataclasses.replace(receipt, residual=(row,))
    directions = Directions({}, {}, "x", provenance={"shares": {"1": 0.7}})
    facts = edit_facts([receipt], directions, [LEAK])
    assert facts.layers == (
        LayerLeft(layer=1, before=0.3, before_largest=0.6, after=0.1, after_largest=0.2),
    )
    assert facts.norm is not None
    assert facts.norm.norm == "frobenius"
    assert facts.norm.left == receipt.left
    assert facts.norm.largest == max(record.residual for record in receipt.records)
    assert facts.shares == {"1": 0.7}
    assert facts.leaks == (LEAK.done,)


def test_without_a_kept_norm_there_is_none_to_tell() -> None:
    model = tiny_model("llama")
    receipt = excise(model, plan(model, random_directions(model)))
    assert edit_facts([receipt], random_directions(model)).norm is None


def test_a_subset_is_told_layer_by_layer() -> None:
    line = left_lines(SUBSET)[0]
    assert "in % by layer: emb 1→1, 0 30→2.4, 1 30→0 (largest: 25 %)" in line


def test_a_full_removal_is_told_in_one_line() -> None:
    facts = SUBSET.model_copy(update={"layers": SUBSET.layers[2:]})
    assert "up to 30 % before; now at most 1.0·10⁻¹¹ at any layer and token" in left_lines(facts)[0]


def test_a_kept_norm_and_a_projected_direction_are_told() -> None:
    text = " ".join(left_lines(SUBSET))
    assert "Keeps row norms; the matrices still write 2.0·10⁻⁸" in text
    assert "(most: blocks.1.mlp, 45 %)" in text
    assert "The direction keeps 85 % to 91.2 % of the mean difference." in text
    plain = SUBSET.model_copy(update={"shares": {"3": 1.0}, "norm": None})
    assert len(left_lines(plain)) == 1


def test_all_of_it_is_on_the_screen_and_on_the_page(tmp_path) -> None:
    made = report(SUBSET)
    for text in (screen(made), as_html(made)):
        for line in left_lines(SUBSET):
            assert line in " ".join(text.split())
        assert "went on with a leak: 0.2 of the stream is left" in text
    assert "<td>embedding</td>" in as_html(made)
    save_report(made, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == made


def test_a_comparison_without_an_edit_tells_nothing_of_it() -> None:
    original, edited, head = planted(Plant(prompts=8, layers=4, documents=6))
    made = compare(original, edited, edited_head=head)
    assert "What the edit leaves" not in as_html(made)
    assert "Energy of the stream" not in screen(made)


def test_shares_that_may_be_rounding_are_shown_as_such() -> None:
    assert [tiny_share(value) for value in (0.0, 4e-13, 0.023)] == ["0", "4.0·10⁻¹³", "2.3 %"]
