"""A server that is killed in the middle of a run and started again has lost nothing."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow


def test_a_run_outlives_its_server(serve, visit, refuser: Path) -> None:
    server = serve()
    visit.open(server, "Obliterate")
    visit.start_tiny("obliterate", refuser)
    visit.await_state("obliterate", "running")
    server.kill()
    server.start()
    visit.open(server, "Obliterate")
    visit.await_state("obliterate", "finished", "failed")
    expect(visit.state("obliterate")).to_have_attribute("data-state", "finished")
    expect(visit.page.locator(".verdict-card")).to_be_visible()
    assert server.stop() == 0


def test_a_password_is_asked_for(serve, visit) -> None:
    server = serve(OBLITERATUS_UI_AUTH="me:secret")
    visit.page.goto(server.url)
    expect(visit.page.get_by_role("tab", name="Obliterate", exact=True)).to_have_count(0)
    visit.page.get_by_label("username").fill("me")
    visit.page.get_by_label("password").fill("wrong")
    visit.page.get_by_role("button", name="Login").click()
    expect(visit.page.get_by_text(re.compile("Incorrect", re.IGNORECASE))).to_be_visible()
    visit.page.get_by_label("username").fill("me")  # a refused login empties both
    visit.page.get_by_label("password").fill("secret")
    visit.page.get_by_role("button", name="Login").click()
    expect(visit.page.get_by_role("tab", name="Obliterate", exact=True).first).to_be_visible()
