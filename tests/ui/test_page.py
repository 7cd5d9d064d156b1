"""The page as somebody uses it: a run is started, watched, cancelled, finished and read."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
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


def test_a_run_is_started_watched_and_read(served, visit, refuser: Path) -> None:
    visit.open(served, "Obliterate")
    visit.start_tiny("obliterate", refuser)
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


def test_a_run_is_cancelled_and_says_so(served, visit, refuser: Path) -> None:
    visit.open(served, "Atlas")
    visit.start_tiny("analyze", refuser)
    visit.await_state("analyze", "running")
    visit.page.locator("#analyze-cancel").click()
    visit.await_state("analyze", "cancelled", "finished", "failed")
    expect(visit.state("analyze")).to_have_attribute("data-state", "cancelled")
    expect(visit.page.locator("#analyze-cancel")).to_be_disabled()


def sweep(visit, refuser: Path) -> None:
    """Start a sweep whose first strengths are beyond the slider of the chat."""
    visit.turn("sweep-low", -2)
    visit.start_tiny("sweep", refuser)


def test_a_page_that_is_loaded_again_still_shows_the_run(served, visit, refuser: Path) -> None:
    visit.open(served, "Strength Sweep")
    sweep(visit, refuser)
    visit.await_state("sweep", "queued", "running", "finished")
    title = visit.state("sweep").locator(".job-head b").inner_text()
    visit.open(served, "Strength Sweep")
    expect(visit.state("sweep").locator(".job-head b")).to_have_text(title)
    visit.await_state("sweep", "finished", "failed")
    expect(visit.state("sweep")).to_have_attribute("data-state", "finished")


def test_a_point_of_a_sweep_is_chosen_by_keyboard_and_talked_to(served, visit, refuser) -> None:
    visit.open(served, "Strength Sweep")
    if visit.state("sweep").count() == 0:
        sweep(visit, refuser)
    visit.await_state("sweep", "finished")
    visit.page.locator("#sweep-curves g[role=button]").first.focus()
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#sweep-chosen b")).to_have_text("−2")
    visit.page.locator("#sweep-talk").click()
    expect(visit.page.locator("#chat-text")).to_be_visible()
    expect(visit.page.locator("#chat-directions input")).to_have_value(re.compile("sweep-"))
    (found, *_) = served.workspace.glob("sweep-*/sweep.json")
    whole = json.loads(found.read_text())["strength"]  # a sweep counts in the edit's own strength
    field = visit.page.locator("#chat-strength input[type=number]")
    expect(field).to_have_value(f"{-2 * whole:g}")
    visit.page.locator("#chat-text textarea").fill("Tell me about bread.")
    visit.page.locator("#chat-send").click()
    expect(visit.page.locator("#chat-talk .bot.message")).to_contain_text(re.compile(r"\w"))
    expect(visit.page.locator("#chat-send")).to_be_enabled()
    expect(field).to_have_value(f"{-2 * whole:g}")


def test_a_saved_model_is_exported_and_its_card_shown(served, visit, refuser: Path) -> None:
    visit.open(served, "Obliterate")
    if not list(served.workspace.glob("tiny-refuser-advanced/obliteratus")):
        visit.start_tiny("obliterate", refuser)
        visit.await_state("obliterate", "finished")
    visit.choose("Export")
    visit.page.locator("#export-model input").click()
    visit.page.get_by_role("option", name=re.compile("^tiny-refuser-advanced")).first.click()
    visit.page.get_by_role("button", name="The model card").click()
    expect(visit.page.locator("#export-card")).to_contain_text("refus")
    visit.page.locator("#export-start").click()
    visit.await_state("export", "finished", "failed")
    expect(visit.page.locator(".tabitem:visible")).to_contain_text("Written to")
    assert list(served.workspace.glob("tiny-refuser-advanced-zip*.zip"))


def test_two_people_see_each_other_wait(served, arrive, refuser: Path) -> None:
    first, other = arrive(), arrive()
    for person in (first, other):
        person.open(served, "Atlas")
        person.start_tiny("analyze", refuser)
    other.await_state("analyze", "queued")
    expect(other.state("analyze")).to_contain_text("in the queue")
    first.page.locator("#analyze-cancel").click()
    first.await_state("analyze", "cancelled")
    other.await_state("analyze", "running")
    other.page.locator("#analyze-cancel").click()
    other.await_state("analyze", "cancelled")
