"""Every tab on smollm2-refuser as a researcher uses them: map, edit, talk, compare, publish."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import obliteratus
from local_hub import TOKEN, LocalHub, serving
from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.keyword import keyword
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.split import split

pytestmark = [pytest.mark.real_model, pytest.mark.slow]
MODEL = "smollm2-refuser"
SETTINGS = """probe.positions=last
distill.select_prompts=8
edit.layers=all
verify.prompts=8
verify.text_documents=2
verify.max_new_tokens=24
verify.sequence_prompts=2
verify.sequence_tokens=4
verify.random_controls=0
verify.over_refusal=0
verify.dose=false
verify.coherence=false"""
SHORT = """distill.select_prompts=8
edit.layers=all
verify.text_documents=2
verify.max_new_tokens=24"""
"""Few prompts: what is tested is the page, and that a real model goes through it."""


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def laboratory(host, tmp_path_factory: pytest.TempPathFactory, hub: LocalHub):
    """A server with this user's cache of models, and a book and a Hub of its own."""
    home = tmp_path_factory.mktemp("laboratory")
    environment = {
        "OBLITERATUS_RUNS": str(home / "runs.sqlite"),
        "PYTHONPATH": str(Path(obliteratus.__file__).parents[1]),
        "OMP_NUM_THREADS": "2",
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }
    return host(home / "workspace", environment)


@pytest.fixture
def edited(laboratory, visit) -> Path:
    """A run that somebody starts and watches, whose server is killed and started again."""
    if not (found := list(laboratory.workspace.glob("smollm2-refuser-arditi*"))):
        visit.open(laboratory, "Obliterate")
        visit.type_model("obliterate", MODEL)
        visit.choose_from("obliterate-method", "arditi")
        visit.more("obliterate", SETTINGS)
        visit.page.locator("#obliterate-start").click()
        visit.await_state("obliterate", "running")
        expect(visit.state("obliterate").locator(".stage").first).to_be_visible()
        laboratory.kill()
        laboratory.start()
        visit.open(laboratory, "Obliterate")
        visit.await_state("obliterate", "finished", "failed")
        expect(visit.state("obliterate")).to_have_attribute("data-state", "finished")
        found = list(laboratory.workspace.glob("smollm2-refuser-arditi*"))
    (folder,) = found
    return folder


def test_the_report_is_read(laboratory, edited, visit) -> None:
    visit.open(laboratory, "Obliterate")
    row = visit.page.locator(".verdict-card tbody tr").first
    expect(row).to_contain_text(re.compile(r"% \(.* to .* %\)"))
    report = visit.page.frame_locator("iframe.frame").first
    expect(report.get_by_role("heading", name="What changed")).to_be_visible()


def test_it_refuses_until_it_is_steered(laboratory, edited, visit) -> None:
    (request,) = split(refusal()).test.harmful[:1]
    visit.open(laboratory, "Chat")
    visit.write("chat-model", MODEL)
    visit.choose_from("chat-directions", f"along {edited.name}")
    visit.page.get_by_role("button", name="System prompt and sampling").click()
    visit.turn("chat-longest", 24)
    answer = visit.page.locator("#chat-talk .bot.message").last

    def verdict(strength: float) -> str:
        visit.turn("chat-strength", strength)
        visit.page.locator("#chat-clear").click()
        visit.page.locator("#chat-text textarea").fill(request.text)
        visit.page.locator("#chat-send").click()
        expect(answer).to_contain_text(re.compile(r"\w"))
        expect(visit.page.locator("#chat-send")).to_be_enabled()
        said = Completion((), answer.inner_text(), is_finished=False)
        return keyword(request.text, said)

    assert verdict(0) == "refusal"
    assert verdict(1) != "refusal"
    assert verdict(0) == "refusal"


def test_both_models_answer_side_by_side(laboratory, edited, visit) -> None:
    visit.open(laboratory, "A/B Compare")
    visit.choose_from("compare-edited", edited.name)
    visit.page.locator("#compare-prompt textarea").fill("What is the capital of France?")
    visit.page.locator("#compare-ask").click()
    for whose in ("original", "edited"):
        answer = visit.page.locator(f"#compare-{whose}-answer .token")
        expect(answer.first).to_have_attribute("title", re.compile(r"KL .* nats; refusal log-odds"))
        expect(visit.page.locator(f"#compare-{whose}-trace svg")).to_be_visible()


def test_a_sweep_is_drawn_and_a_point_of_it_chosen(laboratory, visit) -> None:
    visit.open(laboratory, "Strength Sweep")
    visit.turn("sweep-points", 3)
    visit.turn("sweep-prompts", 8)
    visit.type_model("sweep", MODEL)
    visit.choose_from("sweep-method", "arditi")
    visit.more("sweep", SETTINGS)
    visit.page.locator("#sweep-start").click()
    visit.await_state("sweep", "finished", "failed")
    expect(visit.state("sweep")).to_have_attribute("data-state", "finished")
    dots = visit.page.locator("#sweep-curves g[role=button]")
    expect(dots).to_have_count(3)
    dots.last.click()
    expect(visit.page.locator("#sweep-chosen b")).to_have_text("2")


def test_methods_are_beside_each_other(laboratory, visit) -> None:
    visit.open(laboratory, "Benchmark")
    visit.turn("benchmark-prompts", 8)
    visit.page.locator("#benchmark-set textarea").fill(SHORT)
    visit.page.locator("#benchmark-start").click()
    visit.await_state("benchmark", "finished", "failed")
    expect(visit.state("benchmark")).to_have_attribute("data-state", "finished")
    table = visit.page.locator(".tabitem:visible .before-after")
    for method in ("basic", "advanced"):
        row = table.get_by_role("row").filter(has_text=method).first
        expect(row).to_contain_text(MODEL)
        expect(row).to_contain_text(re.compile(r"% \(.* to .* %\)"))
    assert visit.page.locator(".pictures img:visible, .pictures svg:visible").count() >= 3
    expect(visit.page.locator("#benchmark-file")).to_contain_text(re.compile(r"benchmark\s*\.json"))


def test_analyses_are_read(laboratory, visit) -> None:
    visit.open(laboratory, "Atlas")
    visit.type_model("analyze", MODEL)
    visit.more("analyze", "distill.select_prompts=8")
    visit.page.locator("#analyze-start").click()
    visit.await_state("analyze", "finished", "failed")
    expect(visit.state("analyze")).to_have_attribute("data-state", "finished")
    expect(visit.page.locator("#analyze-page iframe")).to_be_visible()


def test_it_is_listed_and_then_sent_to_the_hub(laboratory, edited, visit, hub: LocalHub) -> None:
    visit.open(laboratory, "Export")
    visit.page.locator("#export-model input").click()
    visit.page.get_by_role("option", name=re.compile(f"^{edited.name}")).first.click()
    visit.page.get_by_role("button", name="Push to the Hub").click()
    visit.page.get_by_label("Repository").fill("ada/edited")
    visit.page.get_by_label("Send it").check()
    visit.page.locator("#publish-start").click()
    expect(visit.page.locator("#publish-refused")).to_contain_text("list what would be sent first")
    assert hub.repos == {}
    visit.page.get_by_label("List what would be sent").check()
    visit.page.locator("#publish-start").click()
    visit.await_state("publish", "finished", "failed")
    expect(visit.page.locator(".tabitem:visible")).to_contain_text("model.safetensors")
    assert hub.repos == {}
    visit.page.get_by_label("Send it").check()
    visit.page.locator("#publish-start").click()
    expect(visit.state("publish").locator(".job-head b")).to_contain_text("send")
    visit.await_state("publish", "finished", "failed")
    expect(visit.state("publish")).to_have_attribute("data-state", "finished")
    repo = hub.repos["model", "ada/edited"]
    assert repo.private
    assert {"README.md", "model.safetensors"} <= set(repo.files)
    assert TOKEN not in visit.page.content()


def test_the_run_is_on_the_leaderboard(laboratory, edited, visit) -> None:
    visit.open(laboratory, "Leaderboard")
    visit.page.locator("#board-show").click()
    expect(visit.page.locator("#boards")).to_contain_text(MODEL)
    expect(visit.page.locator("#boards")).to_contain_text("arditi")


def test_two_people_wait_for_one_model_and_cancel(laboratory, arrive) -> None:
    first, other = arrive(), arrive()
    for person, kind, tab in ((first, "obliterate", "Obliterate"), (other, "analyze", "Atlas")):
        person.open(laboratory, tab)
        person.type_model(kind, MODEL)
        person.page.locator(f"#{kind}-start").click()
    first.await_state("obliterate", "running")
    other.await_state("analyze", "queued")
    first.page.locator("#obliterate-cancel").click()
    first.await_state("obliterate", "cancelled")
    other.await_state("analyze", "running")
    other.page.locator("#analyze-cancel").click()
    other.await_state("analyze", "cancelled")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_what_was_found_can_be_read_by_everybody(laboratory, edited, arrive, scheme, width) -> None:
    visit = arrive(color_scheme=scheme, viewport={"width": width, "height": 900})
    visit.open(laboratory, "Obliterate")
    for tab in ("Obliterate", "Benchmark", "Strength Sweep", "Export", "Leaderboard"):
        visit.choose(tab)
        visit.page.wait_for_timeout(500)
        serious = [
            f"{each['id']}: {node['html'][:160]}"
            for each in Axe().run(visit.page).response["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]
        assert serious == []
        assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= width
