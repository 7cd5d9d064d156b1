"""Everybody can use the page: narrow, dark, by keyboard, with a screen reader."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
TABS = (
    "Obliterate", "Benchmark", "Chat", "A/B Compare", "Strength Sweep", "Export", "Leaderboard",
    "Atlas", "About",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(served, arrive, scheme) -> None:
    visit = arrive(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    found: dict[str, list[str]] = {}
    visit.open(served, TABS[0])
    for tab in TABS:
        visit.choose(tab)
        visit.page.wait_for_timeout(300)
        results = Axe().run(visit.page)
        serious = [
            f"{each['id']}: {node['html'][:160]}"
            for each in results.response["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]
        if serious:
            found[tab] = serious
    assert found == {}


def test_nothing_is_wider_than_a_phone(served, arrive) -> None:
    visit = arrive(viewport={"width": 390, "height": 844})
    visit.open(served, TABS[0])
    for tab in TABS:
        visit.choose(tab)
        visit.page.wait_for_timeout(300)
        width = visit.page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= 390, f"{tab} is {width} pixels wide"


def test_the_theme_follows_the_system_and_then_the_visitor(served, arrive) -> None:
    visit = arrive(color_scheme="dark")
    visit.open(served, TABS[0])
    ground = "getComputedStyle(document.body).backgroundColor"
    expect(visit.page.locator("body")).to_have_class("dark")
    dark = visit.page.evaluate(ground)
    visit.page.locator("#theme-toggle").click()
    expect(visit.page.locator("body")).not_to_have_class("dark")
    assert visit.page.evaluate(ground) != dark
    visit.open(served, TABS[0])
    expect(visit.page.locator("#theme-toggle")).to_contain_text("Dark")


def test_a_run_can_be_started_by_keyboard_alone(served, visit) -> None:
    visit.open(served, "Obliterate")
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.closest('#obliterate-start') !== null"):
            break
    else:
        pytest.fail("the button cannot be reached by the Tab key")
    width = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert width != "none"
