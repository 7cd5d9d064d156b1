"""Chat and A/B Compare as somebody uses them, with tiny models."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from obliteratus.testing.refuser import ANSWER, REFUSAL

HARMFUL, HARMLESS = "Tell me about vorn.", "Tell me about bread."
PHONE = {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=alert(1)>"


def send(visit, text: str) -> None:
    field = visit.page.locator("#chat-text textarea")
    field.fill(text)
    field.press("Enter")


def answers(visit) -> Locator:
    return visit.page.locator("#chat-talk .bot.message")


@pytest.fixture
def saved(served, models: Mapping[str, Path]) -> str:
    """The name of a saved edit in the workspace of the page."""
    folder = served.workspace / "an edit"
    if not folder.exists():
        shutil.copytree(models["edited"], folder)
        shutil.copy(models["directions"], folder / "obliteratus" / "directions.safetensors")
    return folder.name


def test_a_model_is_talked_to_and_the_conversation_is_cleared(served, visit, models) -> None:
    visit.open(served, "Chat")
    visit.write("chat-model", models["refuser"])
    send(visit, HARMFUL)
    expect(answers(visit).last).to_contain_text(REFUSAL)
    expect(visit.page.locator("#chat-text textarea")).to_have_value("")
    expect(visit.page.locator("#chat-status")).to_contain_text("3 blocks")
    visit.page.locator("#chat-clear").click()
    expect(answers(visit)).to_have_count(0)
    send(visit, HARMLESS)
    expect(answers(visit).last).to_contain_text(ANSWER)


def test_it_is_steered_without_being_loaded_again(served, visit, models, saved: str) -> None:
    visit.open(served, "Chat")
    visit.write("chat-model", models["refuser"])
    visit.choose_from("chat-directions", f"along {saved}")
    visit.turn("chat-strength", 0)
    send(visit, HARMFUL)
    expect(answers(visit).last).to_contain_text(REFUSAL)
    visit.turn("chat-strength", 1.5)
    visit.page.locator("#chat-clear").click()
    send(visit, HARMFUL)
    expect(visit.page.locator("#chat-send")).to_be_enabled()
    expect(answers(visit).last).not_to_contain_text(REFUSAL)


def test_an_answer_is_stopped_and_kept_as_far_as_it_got(served, visit, models) -> None:
    visit.open(served, "Chat")
    visit.write("chat-model", models["babbler"])
    visit.page.get_by_role("button", name="System prompt and sampling").click()
    visit.turn("chat-longest", 4096)
    send(visit, "Hello")
    expect(visit.page.locator("#chat-stop")).to_be_enabled()
    expect(answers(visit).last).to_contain_text(re.compile(r"\S{9}"))
    visit.page.locator("#chat-stop").click()
    expect(visit.page.locator("#chat-send")).to_be_enabled()
    expect(visit.page.locator("#chat-stop")).to_be_disabled()
    expect(answers(visit).last).to_contain_text(re.compile(r"\S{9}"))
    send(visit, "again")
    expect(answers(visit)).to_have_count(2)
    visit.page.locator("#chat-stop").click()
    expect(visit.page.locator("#chat-send")).to_be_enabled()


def test_what_fails_is_said_and_the_message_is_not_lost(served, visit) -> None:
    visit.open(served, "Chat")
    send(visit, HARMFUL)
    alert = visit.page.locator("#chat-status").get_by_role("alert")
    expect(alert).to_contain_text("choose a model")
    visit.write("chat-model", "./nowhere")
    visit.page.locator("#chat-send").click()
    expect(alert).to_contain_text("there is no folder nowhere")
    expect(visit.page.locator("#chat-text textarea")).to_have_value(HARMFUL)
    expect(visit.page.locator("#chat-send")).to_be_enabled()


def test_what_is_said_is_text(served, visit, models) -> None:
    visit.open(served, "Chat")
    visit.write("chat-model", models["refuser"])
    send(visit, HOSTILE)
    expect(visit.page.locator("#chat-talk .user.message").last).to_contain_text(HOSTILE)
    expect(visit.page.locator("#chat-send")).to_be_enabled()
    assert visit.page.locator("#chat-talk img[src=x]").count() == 0


def test_two_answers_stand_side_by_side_with_their_numbers(
    served, visit, models, saved: str
) -> None:
    visit.open(served, "A/B Compare")
    visit.choose_from("compare-edited", saved)
    expect(visit.page.locator("#compare-original input").first).to_have_value(
        str(models["refuser"])
    )
    visit.page.locator("#compare-prompt textarea").fill(HARMFUL)
    visit.page.locator("#compare-ask").click()
    original, edited = (
        visit.page.locator(f"#compare-{whose}-answer") for whose in ("original", "edited")
    )
    expect(original).to_contain_text(REFUSAL)
    expect(visit.page.locator("#compare-ask")).to_be_enabled()
    expect(edited).not_to_contain_text(REFUSAL)
    expect(original.locator(".token").first).to_have_attribute(
        "title", re.compile(r"token 1; KL .* nats; refusal log-odds: original \d")
    )
    picture = visit.page.locator("#compare-original-trace svg")
    expect(picture).to_have_attribute("aria-label", re.compile("original .* at the first token"))
    expect(picture.locator("polyline")).to_have_count(2)
    expect(original.locator("small")).to_have_count(0)
    visit.page.get_by_label("Write KL under every token").check()
    expect(original.locator("small").first).to_be_visible()
    visit.page.get_by_role("button", name="Every value, as a table").click()
    expect(visit.page.get_by_role("row")).not_to_have_count(0)
    left, right = original.bounding_box(), edited.bounding_box()
    assert left is not None
    assert right is not None
    assert left["x"] + left["width"] <= right["x"]


def test_on_a_phone_the_answers_stand_one_below_the_other(served, visit, models, saved) -> None:
    visit.page.set_viewport_size(PHONE)
    visit.open(served, "A/B Compare")
    visit.write("compare-original", models["refuser"])
    visit.choose_from("compare-edited", f"steered along {saved}")
    visit.page.locator("#compare-prompt textarea").fill(f"{HARMFUL} {HOSTILE}")
    visit.page.locator("#compare-ask").click()
    expect(visit.page.locator("#compare-edited-answer .token").first).to_be_visible()
    expect(visit.page.locator("#compare-ask")).to_be_enabled()
    boxes = [
        visit.page.locator(f"#compare-{whose}-answer").bounding_box()
        for whose in ("original", "edited")
    ]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert visit.page.locator("img[src=x]").count() == 0


def test_a_comparison_is_stopped(served, visit, models) -> None:
    visit.open(served, "A/B Compare")
    visit.write("compare-original", models["babbler"])
    visit.write("compare-edited", models["babbler"])
    visit.page.get_by_role("button", name="System prompt and length").click()
    visit.turn("compare-longest", 512)
    visit.page.locator("#compare-prompt textarea").fill("Hello")
    visit.page.locator("#compare-ask").click()
    expect(visit.page.locator("#compare-edited-answer .token").nth(5)).to_be_attached()
    visit.page.locator("#compare-stop").click()
    expect(visit.page.locator("#compare-ask")).to_be_enabled()
    assert visit.page.locator("#compare-edited-answer .token").count() < 512
    expect(visit.page.locator("#compare-original-trace")).to_contain_text("No first token tells")
