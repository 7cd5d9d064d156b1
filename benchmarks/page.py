"""How fast the page is, and how it looks.

    python benchmarks/page.py MODEL                       # first paint; clicks while a run goes on
    python benchmarks/page.py --screenshots DIR [-w DIR]  # every tab, themes and widths
    python benchmarks/page.py MODEL --screenshots DIR -w DIR --fill  # first a run in every tab

Needs Chromium and Playwright (``pip install "obliteratus[dev]"``).
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from obliteratus.ui.serve import Place, checked, laboratory, launched

TABS = (
    "Obliterate", "Benchmark", "Chat", "A/B Compare", "Strength Sweep", "Export", "Leaderboard",
    "Atlas", "About",
)  # fmt: skip
RUNS = {
    "Obliterate": "obliterate", "Benchmark": "benchmark", "Strength Sweep": "sweep",
    "Atlas": "analyze",
}  # fmt: skip
FEWER = """distill.select_prompts=16
verify.max_new_tokens=32
verify.text_documents=16"""
SMALLER = f"""{FEWER}
verify.prompts=64
verify.dose=false
verify.over_refusal=0"""
"""What `obliteratus demo` measures, of fewer documents: pictures need no more."""
QUESTION = "What is the capital of France, and what is it known for?"
PAINTS, CLICKS = 5, 30
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
WATCH = """() => {
  const plan = document.getElementById("obliterate-plan");
  let clicked = 0, before = "";
  document.addEventListener("mousedown", () => {
    clicked = performance.now();
    before = plan.textContent;
    window.answered = undefined;
  }, true);
  new MutationObserver(() => {
    if (plan.textContent !== before) window.answered ??= performance.now() - clicked;
  }).observe(plan, { childList: true, subtree: true, characterData: true });
}"""
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-refuser")
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--workspace", "-w", type=Path)
    parser.add_argument("--fill", action="store_true")
    asked = parser.parse_args()
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        place = checked("127.0.0.1", 0, None)
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        with laboratory(asked.workspace or Path(folder)) as lab:
            served = launched(lab, place, wait=False)
            if asked.fill:
                fill(browser, place, asked.model)
            if asked.screenshots is not None:
                screenshots(browser, place, asked.screenshots)
            else:
                measure(browser, place, asked.model)
                for job in lab.jobs.all():
                    lab.jobs.cancel(job)
            browser.close()
            served.close()


def measure(browser: Browser, place: Place, model: str) -> None:
    """Print first paints, and how long clicks take with and without a run."""
    paints = [painted(browser, place) for _ in range(PAINTS)]
    print(f"| first paint | {_spread(paints)} |", flush=True)
    page = browser.new_page()
    page.goto(place.url)
    page.get_by_role("tab", name="Obliterate", exact=True).first.wait_for()
    print(f"| a click, nothing runs | {_spread(clicks(page))} |", flush=True)
    field = page.locator("#obliterate-model input").first
    field.fill(model)
    field.press("Enter")
    page.locator("#obliterate-start").click()
    page.locator("#obliterate-progress .stage.is-running").first.wait_for(timeout=300_000)
    print(f"| a click, a run of {model} goes on | {_spread(clicks(page))} |", flush=True)
    state = page.locator("#obliterate-progress section").get_attribute("data-state")
    assert state == "running", f"the run was {state} before the clicks were over"


def painted(browser: Browser, place: Place) -> float:
    """Return the milliseconds to the first contentful paint in a browser with nothing cached."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(place.url)
    page.get_by_role("tab", name="Obliterate", exact=True).first.wait_for()
    found = float(page.evaluate(PAINT))
    context.close()
    return found


def clicks(page: Page) -> list[float]:
    """Return milliseconds, by the page's own clock, from a click on a method to its words.

    The words come from the server: the time has the way there and back in it.
    """
    found: list[float] = []
    page.evaluate(WATCH)
    for number in range(CLICKS):
        page.locator("#obliterate-method input").click()
        option = page.get_by_role("option", name=("basic", "advanced")[number % 2], exact=True)
        option.first.click()
        page.wait_for_function("window.answered !== undefined")
        found.append(float(page.evaluate("window.answered")))
    return found


def fill(browser: Browser, place: Place, model: str) -> None:
    """Start a run in every tab that has runs, one after the other, and wait for all of them."""
    page = browser.new_page()
    page.goto(place.url)
    for tab, kind in RUNS.items():
        page.get_by_role("tab", name=tab, exact=True).first.click()
        if kind == "benchmark":
            page.locator(f"#{kind}-set textarea").fill(FEWER)
        else:
            field = page.locator(f"#{kind}-model input").first
            field.fill(model)
            field.press("Enter")
        if kind in ("obliterate", "sweep"):
            page.locator(f"#{kind}-more").get_by_role("button", name="More settings").click()
            page.locator(f"#{kind}-set textarea").fill(SMALLER)
        page.locator(f"#{kind}-start").click()
        section = page.locator(f"#{kind}-progress section")
        section.locator("xpath=self::*[@data-state='finished']").wait_for(timeout=3_600_000)
        print(f"{tab} has finished", flush=True)
    page.close()


def talk(page: Page, tab: str) -> None:
    """Ask the newest saved edit something where models are talked to, and wait for the answer."""
    if tab not in ("Chat", "A/B Compare"):
        return
    name, sent = ("chat", "chat-send") if tab == "Chat" else ("compare", "compare-ask")
    choice = page.locator(f"#{'chat-model' if tab == 'Chat' else 'compare-edited'} input").first
    choice.click()
    saved = page.get_by_role("option").filter(has_text="-advanced")
    if not saved.count():
        choice.press("Escape")
        return
    saved.first.click()
    field = page.locator(f"#{name}-{'text' if tab == 'Chat' else 'prompt'} textarea")
    field.fill(QUESTION)
    page.locator(f"#{sent}").click()
    page.wait_for_timeout(2000)
    page.locator(f"#{sent}:not([disabled])").wait_for(timeout=300_000)


def screenshots(browser: Browser, place: Place, folder: Path) -> None:
    """Write every tab as ``<tab>-<size>-<theme>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        for size, (width, height) in SIZES.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme
            )
            page = context.new_page()
            page.goto(place.url)
            for tab in TABS:
                page.get_by_role("tab", name=tab, exact=True).first.click()
                talk(page, tab)
                page.wait_for_timeout(1500)  # what the server adds, and the frames of reports
                name = f"{tab.lower().replace(' ', '-').replace('/', '')}-{size}-{theme}.png"
                page.screenshot(path=folder / name, full_page=True)
            context.close()
    print(f"{2 * len(SIZES) * len(TABS)} pictures in {folder}")


def _spread(values: list[float]) -> str:
    return (
        f"{statistics.median(values):.0f} ms ({min(values):.0f} to {max(values):.0f}, "
        f"n = {len(values)})"
    )


if __name__ == "__main__":
    main()
