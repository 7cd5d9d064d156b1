"""The report as JSON, page, screen and pictures: complete, self-contained, reproducible."""

import html
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from obliteratus.errors import MeasurementError, StorageError
from obliteratus.events import Deviation
from obliteratus.pictures.style import DARK, LIGHT, as_png, as_svg
from obliteratus.statistics.estimate import Estimate
from obliteratus.store import read_json, write_json
from obliteratus.testing.planted_measurement import Plant, bag_of_words, planted
from obliteratus.verify import pictures
from obliteratus.verify.claims import kept_claim
from obliteratus.verify.compare import compare
from obliteratus.verify.controls import Controls
from obliteratus.verify.dose_picture import dose_response
from obliteratus.verify.dose_words import dose_line
from obliteratus.verify.formatting import change, number, p_value, percent_change, shown
from obliteratus.verify.html import as_html, save_html
from obliteratus.verify.layers import layer_ranges
from obliteratus.verify.rank_picture import layers_ranked
from obliteratus.verify.records.effects import ControlRow, Dose, DoseRow
from obliteratus.verify.records.layers import CandidateRow, RankRow
from obliteratus.verify.report import Report, load_report, save_report
from obliteratus.verify.terminal import as_screen


def made(plant: Plant) -> Report:
    original, edited, head = planted(plant)
    zero = Estimate(0.0, (0.0, 0.0), n=4)
    controls = Controls(
        (
            ControlRow(name="the edit", kind="edit", kl=Estimate(0.05, (0.04, 0.06), n=4)),
            ControlRow(name="strength 0", kind="identity", kl=zero, is_bitwise=True),
        ),
        (Deviation("controls", "edit.norm=column", "without it", "hooks cannot"),),
    )
    report = compare(original, edited, edited_head=head, embed=bag_of_words, controls=controls)
    candidates = tuple(
        CandidateRow(
            layer=layer,
            position=position,
            bypass=-layer,
            induce=layer,
            kl=0.01,
            is_chosen=layer == 2 and position == -1,
        )
        for position in (-2, -1)
        for layer in range(4)
    )
    return report.model_copy(update={"candidates": candidates, "ranking": ranking(4)})


def ranking(layers: int, strong: tuple[int, ...] = (1, 2)) -> tuple[RankRow, ...]:
    def about(value: float, null: float | None = 0.5) -> Estimate:
        return Estimate(value, (value - 0.25, value + 0.25), n=16, null=null)

    return tuple(
        RankRow(
            layer=layer,
            separation=about(1.5 + layer, 0.0),
            bypass=None if layer == 0 else about(3.0 + layer),
            induce=None if layer == 0 else about(2.0 + layer),
            kl=None if layer == 0 else about(0.5, None),
            standing="strong" if layer in strong else "undetermined",
        )
        for layer in range(layers)
    )


def dosed(largest: float | None, *, applied: float = 1.0, odds: bool = True) -> Dose:
    """Return doses of strength 0.8 of which those up to ``largest`` pass."""
    shares = sorted({0.0, 0.05, 0.25, 0.5, 0.75, 1.0, largest or 0.0})

    def row(share: float) -> DoseRow:
        is_good = share <= (largest or 0.0)
        verdict = "supported" if is_good else "not_supported"
        size = 0.05 * share if is_good else 0.3 * share + 0.1
        return DoseRow(
            share=share,
            kl=Estimate(size, (0.9 * size, 1.1 * size), n=32, verdict=verdict),
            perplexity=Estimate(1 + size, (1 + size / 2, 1 + 2 * size), n=16, verdict=verdict),
            log_odds_change=Estimate(-share, (-1.5 * share, -share / 2), n=32) if odds else None,
        )

    words = None if largest is None else f"{0.8 * largest:g}"
    rows = tuple(map(row, shares))
    return Dose(rows=rows, strength="0.8", largest=largest, largest_strength=words, applied=applied)


@pytest.fixture(scope="module")
def harmed() -> Report:
    """A report whose perplexity claim fails."""
    return made(Plant(prompts=16, layers=4, documents=12, perplexity=1.2))


@pytest.fixture(scope="module")
def report() -> Report:
    return made(Plant(prompts=16, layers=4, documents=12))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return as_html(report)


def screen(report: Report) -> list[str]:
    console = Console(width=80, color_system=None, record=True, file=io.StringIO())
    console.print(as_screen(report))
    return console.export_text().splitlines()


def test_a_report_survives_the_disk(report: Report, tmp_path: Path):
    save_report(report, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report


def test_equal_reports_have_equal_bytes(report: Report, tmp_path: Path):
    again = made(Plant(prompts=16, layers=4, documents=12))
    for name, value in (("a", report), ("b", again)):
        save_report(value, tmp_path / f"{name}.json")
        save_html(value, tmp_path / f"{name}.html")
    for suffix in ("json", "html"):
        first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert first == second


def test_another_schema_and_damage_are_refused(report: Report, tmp_path: Path):
    path = tmp_path / "report.json"
    save_report(report, path)
    record = read_json(path)
    write_json(path, {**record, "schema_version": 99})
    with pytest.raises(StorageError, match=r"schema 99.*verify again"):
        load_report(path)
    write_json(path, {**record, "verdict": "splendid"})
    with pytest.raises(StorageError, match="is damaged: verdict"):
        load_report(path)


def test_the_page_needs_nothing_else(page: str):
    outside = re.findall(r'(?:src|href)="(?!#)([^"]+)"|url\((?!#)([^)]+)\)|@import', page)
    assert outside == []
    links = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert all(link.startswith("http://www.w3.org/") for link in links)  # names, not addresses
    assert "<script" not in page


def test_the_page_leads_with_the_verdict(page: str, report: Report):
    body = page[page.index("<body>") :]
    assert body.index(report.headline.split(" to ")[0]) < body.index("What changed")
    assert body.index("<h1>") < body.index('class="claims"') < body.index("<svg")


def test_trained_weights_are_not_called_an_edit(report: Report):
    kept = kept_claim(Estimate(0.0, (-0.01, 0.01), n=16))
    edited = report.model_copy(update={"verdict": "supported"})
    trained = edited.model_copy(update={"claims": (kept, *report.claims[1:])})
    assert "The training does what it claims" in as_html(trained)
    assert "The edit does what it claims" in as_html(edited)


def test_the_page_follows_the_reader_s_colours(page: str):
    assert "prefers-color-scheme: dark" in page
    body = page[page.index("<body>") :]
    for role, colour in LIGHT.items():
        bare = body.replace(f"var(--{role}, {colour})", "")
        assert colour not in bare
        assert f"--{role}: {DARK[role]};" in page
    assert len(set(LIGHT.values())) == len(LIGHT)  # a colour says which role it has


def test_the_page_tells_what_was_not_done_as_asked(page: str):
    assert "edit.norm=column" in page
    assert "hooks cannot" in page


def test_what_was_not_measured_is_named():
    original, edited, head = planted(Plant(prompts=8, layers=1, documents=6))
    text = as_html(compare(original, edited, edited_head=head))
    assert "Not measured: coherence." in text
    assert "The edit beside its nulls" not in text


def test_names_cannot_inject_markup(report: Report):
    subject = report.edited.model_copy(update={"name": "<script>alert(1)</script>"})
    assert "<script" not in as_html(report.model_copy(update={"edited": subject}))


def test_every_picture_is_drawn_and_the_same_each_time(report: Report):
    for draw in (
        pictures.refusal_by_layer,
        pictures.outcomes_by_category,
        pictures.kl_by_position,
        pictures.change_by_document,
        pictures.controls,
    ):
        first = as_svg(draw(report))
        assert first == as_svg(draw(report))
        assert first.startswith("<svg")
        assert " width=" not in first[: first.index(">")]
    assert as_png(pictures.controls(report)).startswith(b"\x89PNG")


def test_the_ranking_is_told_with_intervals_on_the_screen_and_the_page(report: Report, page: str):
    text = " ".join(" ".join(screen(report)).split())
    assert (
        "Strong layers: 1-2 of 4. Layer 2: separation 3.50 (3.25 to 3.75) s.d., bypass 5.00 "
        "(4.75 to 5.25), induce 4.00 (3.75 to 4.25)." in text
    )
    assert "Strong and weak layers" in page
    assert page.count('<td data-label="rank">') == 4
    assert '<td data-label="rank">strong</td>' in page


def test_undetermined_layers_are_said_to_be(report: Report):
    unknown = report.model_copy(update={"ranking": ranking(4, strong=())})
    assert "Strong layers: undetermined." in " ".join(screen(unknown))
    assert "Strong layers" not in "".join(screen(report.model_copy(update={"ranking": ()})))


def test_strong_layers_are_shaded_in_both_panels_and_gaps_are_left(report: Report):
    def shaded(rows: tuple[RankRow, ...]) -> list[int]:
        return [len(axes.patches) for axes in layers_ranked(rows).axes]

    assert shaded(report.ranking) == [2, 2]
    assert shaded(ranking(4, strong=())) == [0, 0]
    lower = layers_ranked(report.ranking).axes[1]
    assert min(len(line.get_xdata()) for line in lower.lines if len(line.get_xdata()) > 2) == 3
    assert as_svg(layers_ranked(report.ranking)) == as_svg(layers_ranked(report.ranking))
    with pytest.raises(MeasurementError, match="ranks no layers"):
        layers_ranked(())


@pytest.mark.parametrize(
    ("layers", "text"), [((), ""), ((3,), "3"), ((3, 8, 9, 10), "3, 8-10"), ((0, 1), "0-1")]
)
def test_runs_of_layers_are_told_as_ranges(layers: tuple[int, ...], text: str):
    assert layer_ranges(layers) == text


def test_each_prompt_has_its_square_before_and_after(report: Report):
    axes = pictures.outcomes_by_category(report).axes[0]
    squares = sum(len(drawn.get_paths()) for drawn in axes.collections)
    assert squares == 2 * 16


@pytest.mark.parametrize(
    ("draw", "emptied", "message"),
    [
        (pictures.refusal_by_layer, "layers", "Verify with directions"),
        (pictures.outcomes_by_category, "categories", "no outcomes of harmful"),
        (pictures.kl_by_position, "positions", "at least two positions"),
        (pictures.change_by_document, "documents", "no held-out documents"),
        (pictures.controls, "controls", "no controls"),
    ],
)
def test_a_picture_without_data_is_refused(report: Report, draw, emptied: str, message: str):
    with pytest.raises(MeasurementError, match=message):
        draw(report.model_copy(update={emptied: ()}))


def test_the_terminal_shows_everything_on_one_screen(report: Report):
    lines = screen(report)
    assert len(lines) <= 30
    assert max(len(line.rstrip()) for line in lines) <= 80
    text = "\n".join(lines)
    assert lines[0].split("  ")[-1].strip() in as_html(report)
    assert all(claim.text in text for claim in report.claims)
    assert all(row.label in text for row in report.rows)
    assert "1 thing was not done as asked" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0234, "share", "2.3 %"),
        (1.0, "share", "100 %"),
        (-0.5, "share", "−50 %"),
        (0.0812, "nats", "0.081"),
        (3.2e-7, "nats", "3.2·10⁻⁷"),
        (-4.321, "log-odds", "−4.32"),
        (12.3456, "perplexity", "12.35"),
        (123456.0, "perplexity", "1.2e+05"),
        (0.0, "nats", "0.000"),
    ],
)
def test_numbers_have_the_digits_of_their_unit(value: float, unit, text: str):
    assert number(value, unit) == text


def test_changes_carry_their_sign(report: Report):
    row = report.row("refusal_harmful")
    assert row is not None
    assert change(row).startswith("−")
    assert percent_change(1.012) == "+1.2 %"
    assert percent_change(0.95) == "−5.0 %"
    assert percent_change(250.0) == "×250"
    assert p_value(0.0001) == "< 0.001"
    assert shown(None, "share") == change(row.model_copy(update={"change": None})) == "–"


def test_doses_survive_the_disk(harmed: Report, tmp_path: Path):
    dosed_report = harmed.model_copy(update={"dose": dosed(0.6, applied=0.6)})
    save_report(dosed_report, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == dosed_report
    assert load_report(tmp_path / "report.json") != harmed


@pytest.mark.parametrize(
    ("dose", "sentence"),
    [
        (
            dosed(0.6),
            "The largest strength that passes on the select prompts is 0.48 (0.6 of the edit): "
            "--auto-regularize applies it.",
        ),
        (
            dosed(1.0),
            "On the select prompts the edit passes in full (first-token KL 0.050 (0.045 to 0.055), "
            "perplexity +5.0 % (+2.5 to +10.0 %)), so --auto-regularize would keep it; set "
            "edit.strength for a weaker one.",
        ),
        (
            dosed(0.6, applied=0.6),
            "--auto-regularize has applied the largest strength that passes on the select prompts, "
            "0.6 of strength 0.8.",
        ),
        (
            dosed(None),
            "No strength passes on the select prompts: 0.05 of strength 0.8 has first-token KL "
            "0.115 (0.104 to 0.127), perplexity +11.5 % (+5.8 to +23.0 %).",
        ),
    ],
    ids=["weaker", "in full", "applied", "none"],
)
def test_a_claim_that_fails_names_the_largest_strength(harmed: Report, dose: Dose, sentence: str):
    found = harmed.model_copy(update={"dose": dose})
    assert dose_line(found) == sentence
    page = html.unescape(as_html(found))
    assert page.count(sentence) == 1
    rule = next(claim.rule for claim in harmed.claims if claim.key == "perplexity")
    assert f"{rule}<br>{sentence}" in page  # beside the claim that it helps
    lines = screen(found)
    assert sentence in " ".join(" ".join(lines).split())
    assert len(lines) <= 30


def test_where_the_claims_hold_no_weaker_edit_is_named(report: Report):
    held = {claim.key: claim.estimate.verdict for claim in report.claims}
    assert held["kl"] == held["perplexity"] == "supported"
    found = report.model_copy(update={"dose": dosed(0.6)})
    assert dose_line(found) is None
    assert "--auto-regularize" not in as_html(found)
    assert "Dose and response" in as_html(found)
    assert screen(found) == screen(report)


def test_without_doses_nothing_is_said_of_them(harmed: Report):
    assert dose_line(harmed) is None
    assert "Dose" not in as_html(harmed)


def test_every_dose_is_in_a_table_with_its_verdict(harmed: Report):
    page = as_html(harmed.model_copy(update={"dose": dosed(0.6)}))
    table = page[page.index("Dose by dose") :]
    table = table[: table.index("</table>")]
    assert re.findall(r"<tr><td>([^<]*)</td>", table) == ["0", "0.05", "0.25", "0.5", "0.6",
                                                          "0.75", "1"]  # fmt: skip
    assert re.findall(r'data-label="passes">(\w+)<', table) == ["yes"] * 5 + ["no"] * 2


@pytest.mark.parametrize(("largest", "words"), [(0.6, "largest that passes: 0.6"),
                                                (None, "no strength passes")])  # fmt: skip
def test_doses_are_drawn_over_one_axis_with_what_passes(largest: float | None, words: str):
    picture = dose_response(dosed(largest))
    odds, kl, perplexity = picture.axes
    assert [text.get_text() for text in odds.texts] == [words]
    assert perplexity.get_xlabel() == "share of strength 0.8"
    for axes in (odds, kl, perplexity):
        vertical = [line for line in axes.lines if list(line.get_xdata()) == [largest, largest]]
        assert len(vertical) == (largest is not None)
        low, high = axes.get_ylim()
        assert all(low < y < high for line in axes.lines for y in line.get_ydata()
                   if line.get_marker() == "o")  # fmt: skip
    assert (len(odds.patches), len(kl.patches), len(perplexity.patches)) == (0, 1, 1)
    dots = [line for line in kl.lines if line.get_marker() == "o"]
    hollow = [dot for dot in dots if dot.get_markerfacecolor() == LIGHT["page"]]
    assert len(dots) == len(dosed(largest).rows)
    assert len(hollow) == sum(not row.passes for row in dosed(largest).rows)
    assert as_svg(picture) == as_svg(dose_response(dosed(largest)))


def test_doses_without_log_odds_have_two_panels_and_none_are_refused():
    assert len(dose_response(dosed(0.6, odds=False)).axes) == 2
    with pytest.raises(MeasurementError, match=r"no doses.*verify\.dose=true"):
        dose_response(None)


def test_a_report_without_nulls_says_that_they_were_not_measured(report: Report) -> None:
    note = "The nulls of the edit were not measured"
    assert note not in as_html(report)
    assert note in as_html(report.model_copy(update={"controls": ()}))
