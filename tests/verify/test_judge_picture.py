"""The picture of the judge shows every labelled answer, and says what it cannot tell."""

from functools import cache

import pytest
from matplotlib.patches import Rectangle

from obliteratus.errors import MeasurementError
from obliteratus.measure.agreement import Agreement, agreement
from obliteratus.measure.judges.base import TextJudge, judge_named
from obliteratus.pictures.style import LIGHT, as_svg
from obliteratus.settings import JudgeSettings, VerifySettings
from obliteratus.testing.planted_measurement import Plant, planted
from obliteratus.verify.compare import compare
from obliteratus.verify.html import as_html
from obliteratus.verify.judge_picture import judge_by_label, judge_caption
from obliteratus.verify.records.judging import JudgeAgreement
from obliteratus.verify.report import Report


def report(found: Agreement | None, judge: JudgeSettings | None = None) -> Report:
    before, after, head = planted(Plant(prompts=8, layers=1, documents=6))
    settings = VerifySettings(judge=judge or JudgeSettings())
    before, after = (type(each)(**{**vars(each), "settings": settings}) for each in (before, after))
    return compare(before, after, edited_head=head, agreement=found)


@cache
def agreed(name: str) -> Agreement:
    return agreement(judge_named(name))


@cache
def measured(name: str) -> JudgeAgreement:
    found = report(agreed(name)).agreement
    assert found is not None
    return found


def widths(found: JudgeAgreement, panel: int) -> list[list[tuple[str, float]]]:
    """Return the parts of every bar as (colour, share)."""
    axes = judge_by_label(found).axes[panel]
    bars: dict[float, list[tuple[str, float]]] = {}
    for part in axes.patches:
        assert isinstance(part, Rectangle)
        colour = "#" + "".join(f"{round(255 * x):02x}" for x in part.get_facecolor()[:3])
        bars.setdefault(part.get_y(), []).append((colour, part.get_width()))
    return [bars[place] for place in sorted(bars)]


def texts(found: JudgeAgreement) -> list[str]:
    return [text.get_text() for axes in judge_by_label(found).axes for text in axes.texts]


@pytest.mark.parametrize("name", ["keyword", "openings"])
def test_bars_are_the_shares_of_rulings_on_every_label(name: str):
    found = measured(name)
    counts = {(cell.label, cell.said): cell.count for cell in found.confusion}
    bars = widths(found, 0)
    for bar, label in zip(bars, ("refusal", "compliance", "degenerate"), strict=True):
        total = sum(n for (of, _), n in counts.items() if of == label)
        drawn = {colour: share for colour, share in bar if share}
        assert drawn == {
            LIGHT[said]: pytest.approx(n / total) for (of, said), n in counts.items() if of == label
        }
        assert sum(drawn.values()) == pytest.approx(1)
    assert dict(bars[0])[LIGHT["refusal"]] == pytest.approx(found.recall.value)


def test_what_is_called_a_refusal_is_drawn_by_what_it_is():
    found = measured("keyword")
    assert found.precision is not None
    (bar,) = widths(found, 1)
    assert dict(bar)[LIGHT["refusal"]] == pytest.approx(found.precision.value)


def test_every_count_and_both_intervals_are_written():
    found = measured("keyword")
    said = texts(found)
    for cell in found.confusion:
        assert str(cell.count) in said
    assert "found: 64.1 % (55.5 to 71.9 %)" in said
    assert "right: 92.1 % (84.6 to 96.1 %)" in said
    ticks = [
        tick.get_text() for axes in judge_by_label(found).axes for tick in axes.get_yticklabels()
    ]
    assert ticks[0] == f"refusal ({found.recall.n})"
    assert ticks[-1] == "called refusal (89)"


def test_intervals_are_drawn_where_they_are():
    found = measured("keyword")
    for axes, estimate in zip(
        judge_by_label(found).axes, (found.recall, found.precision), strict=True
    ):
        assert estimate is not None
        lines = [tuple(line.get_xdata()) for line in axes.lines]
        assert estimate.interval in lines
        assert (estimate.value,) in [tuple(line) for line in lines]


def test_a_judge_that_never_says_refusal_has_no_precision_in_the_picture():
    silent = TextJudge("silent", lambda *_: "compliance")
    found = report(agreement(silent)).agreement
    assert found is not None
    assert found.precision is None
    assert not any(text.startswith("right") for text in texts(found))
    assert "called refusal (0)" in as_svg(judge_by_label(found))


def test_equal_judges_give_equal_pictures():
    found = measured("keyword")
    assert as_svg(judge_by_label(found)) == as_svg(judge_by_label(found))


def test_reports_without_counts_have_no_such_picture():
    found = measured("keyword").model_copy(update={"confusion": ()})
    with pytest.raises(MeasurementError, match="Verify again to count it"):
        judge_by_label(found)
    full = report(agreed("keyword"))
    title = "How far to believe the judge"
    assert title in as_html(full)
    assert title not in as_html(full.model_copy(update={"agreement": found}))
    assert title not in as_html(report(None))


def test_the_caption_says_of_whom_and_what_it_cannot_tell():
    found = agreed("keyword")
    text = judge_caption(report(found))
    for words in (f"{found.n} short answers", "two people", "it cannot tell", "was chosen"):
        assert words in text
    assert "by how they begin" not in text
    named = JudgeSettings(name="openings")
    of_beginnings = judge_caption(report(agreed("openings"), named))
    assert "by how they begin, and does worse than on a model" in of_beginnings
