"""The page as somebody uses it: a run is started, watched, cancelled, finished and read."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

TABS = (
    "Obliterate", "Benchmark", "Chat", "A/B Compare", "Strength Sweep", "Export", "Leaderboard",
    "Atlas", "About",
)  # fmt: skip


def test_every_tab_opens_without_an_error(served, visit) -> None:
    errors: list[str] = []
    visit.page.on("pageerror", lambda error: errors.append(str(error)))
    visit.page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    visit.open(served, "Obliterate")
    for tab in TABS:
        visit.choose(tab)
        expect(visit.page.get_by_role("tabpanel").locator("visible=true").first).to_be_visible()
    assert errors == []


def test_a_run_is_started_watched_and_read(served, visit, refuser: Path, tiny_settings_text) -> None:
    visit.open(served, "Obliterate")
    visit.type_model("obliterate", refuser)
    visit.more("obliterate", tiny_settings_text, refuser)
    visit.page.locator("#obliterate-start").click()
    visit.await_state("obliterate", "running", "finished")
    expect(visit.state("obliterate").locator(".stage").first).to_be_visible()
    visit.await_state("obliterate", "finished", "failed")
    expect(visit.state("obliterate")).to_have_attribute("data-state", "finished")
    names = visit.state("obliterate").locator(".stage .name").all_inner_texts()
    assert [name.lower() for name in names][:2] == ["summon", "probe"]
    result = visit.page.locator(".verdict-card")
    expect(result).to_contain_text("refuses")
    expect(result.locator("tbody tr").first).to_contain_text(re.compile(r"% \(.* to .* %\)"))
    report = visit.page.frame_locator("iframe.frame").first
    expect(report.get_by_role("heading", name="What changed")).to_be_visible()
    (folder,) = served.workspace.glob("tiny-refuser-advanced*")
    assert (folder / "obliteratus" / "report.json").is_file()


def test_a_wrong_setting_is_told_where_it_was_typed(served, visit, refuser: Path) -> None:
    visit.open(served, "Obliterate")
    visit.type_model("obliterate", refuser)
    visit.more("obliterate", "edit.strenth=2")
    visit.page.locator("#obliterate-start").click()
    expect(visit.page.locator("#obliterate-refused")).to_contain_text("edit.strength")


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "--version"])
def test_what_is_typed_is_text_and_no_flag(served, visit, name: str) -> None:
    visit.open(served, "Obliterate")
    visit.type_model("obliterate", name)
    visit.page.locator("#obliterate-start").click()
    visit.await_state("obliterate", "failed")
    alert = visit.state("obliterate").get_by_role("alert")
    expect(alert).to_contain_text("model")
    assert visit.page.locator("img[src=x]").count() == 0
