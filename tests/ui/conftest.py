"""A server of the page in a process of its own, and a browser that uses it as a person would."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

import obliteratus

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser")) if p), None)
SECONDS_TO_START = 300  # a machine under load imports slowly; nothing here tests how fast it is
expect.set_options(timeout=120_000)
TINY = """distill.select_prompts=8
distill.max_kl=5
distill.max_depth=1
verify.max_new_tokens=28
verify.sequence_prompts=4
verify.sequence_tokens=8
verify.random_controls=1
verify.over_refusal=4
verify.dose=false
verify.coherence=false"""
"""The settings of ``testing.refuser.tiny_settings``, as they are typed."""


def a_free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    return a_free_port()


@dataclass
class Server:
    """``obliteratus ui`` as somebody starts it; it can be killed and started again."""

    workspace: Path
    environment: dict[str, str]
    flags: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Server":
        self.port = a_free_port()
        words = ["ui", "--no-browser", "--port", str(self.port), "--workspace", str(self.workspace)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "obliteratus.cli.main", *words, *self.flags],
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
            except urllib.error.HTTPError:
                return self  # it asks for a password
            except OSError:
                time.sleep(0.2)
            else:
                return self
        raise AssertionError("the server did not answer")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)  # SIGINT is ignored behind a shell's &
        return self.process.wait(timeout=SECONDS_TO_START)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every server here: a cache and a book of their own."""
    home = tmp_path_factory.mktemp("home")
    return {
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
        "PYTHONPATH": str(Path(obliteratus.__file__).parents[1]),  # runs have folders of their own
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def host() -> Iterator[Callable[[Path, dict[str, str]], Server]]:
    """A server for several tests: ``host(workspace, environment)``."""
    servers: list[Server] = []

    def start(workspace: Path, environment: dict[str, str]) -> Server:
        servers.append(Server(workspace, environment))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, places: dict[str, str], host) -> Server:
    """One server for the tests that only look at it and start runs."""
    return host(tmp_path_factory.mktemp("workspace"), places)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: tests/QUARANTINES.md")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """A person with a fresh browser; requests to anywhere but this machine fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)
    strange: list[str] = []
    context.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("http://127.0.0.1:", "data:", "blob:"))
            else strange.append(request.url)
        ),
    )
    yield context
    context.close()
    assert strange == []


@dataclass
class Visit:
    """One page in a browser, with the hands of its visitor."""

    page: Page

    def open(self, server: Server, tab: str) -> None:
        """Load the page and choose a tab."""
        self.page.goto(server.url)
        self.choose(tab)

    def choose(self, tab: str) -> None:
        """Choose a tab."""
        self.page.get_by_role("tab", name=tab, exact=True).first.click()

    def type_model(self, kind: str, model: Path | str) -> None:
        """Type the model's name into the field of that tab."""
        self.write(f"{kind}-model", model)

    def write(self, name: str, text: object) -> None:
        """Type into a field that also has a list."""
        field = self.page.locator(f"#{name} input").first
        field.fill(str(text))
        field.press("Enter")

    def turn(self, name: str, value: float) -> None:
        """Type a number beside a slider."""
        field = self.page.locator(f"#{name} input[type=number]")
        field.fill(str(value))
        field.press("Tab")

    def choose_from(self, name: str, text: str) -> None:
        """Choose from a list."""
        self.page.locator(f"#{name} input").first.click()
        self.page.get_by_role("option", name=text, exact=True).first.click()

    def start_tiny(self, kind: str, model: Path) -> None:
        """Start a run of the tiny refuser that takes seconds."""
        self.type_model(kind, model)
        self.more(kind, TINY, model)
        self.page.locator(f"#{kind}-start").click()

    def more(self, kind: str, settings: str, folder: Path | None = None) -> None:
        """Unfold the rare settings and fill them in, with the prompts of ``folder``."""
        rare = self.page.locator(f"#{kind}-more")
        rare.get_by_role("button", name="More settings").click()
        rare.locator(f"#{kind}-set textarea").fill(settings)
        if folder is not None:
            for place, name in enumerate(("harmful", "harmless")):
                rare.locator("input[type=file]").first.set_input_files(folder / f"{name}.jsonl")
                expect(rare.locator(".file-preview")).to_have_count(place + 1)

    def state(self, kind: str) -> Locator:
        """The run of that tab, once it has a state."""
        return self.page.locator(f"#{kind}-progress section")

    def await_state(self, kind: str, *states: str) -> None:
        """Wait until the run is in one of these states."""
        expect(self.state(kind)).to_have_attribute(
            "data-state", re.compile("|".join(states)), timeout=600_000
        )


@pytest.fixture
def visit(visitor: BrowserContext) -> Visit:
    """A page of a fresh browser."""
    return Visit(visitor.new_page())


@pytest.fixture
def arrive(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Another person with a browser of their own: ``arrive(color_scheme="dark")``."""
    contexts: list[BrowserContext] = []

    def come(**options: Any) -> Visit:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(120_000)
        return Visit(contexts[-1].new_page())

    yield come
    for context in contexts:
        context.close()


@pytest.fixture
def serve(tmp_path: Path, places: dict[str, str]) -> Iterator[Callable[..., Server]]:
    """A server of its own for a test: ``serve(NAME="value in its environment")``."""
    servers: list[Server] = []

    def start(**environment: str) -> Server:
        servers.append(Server(tmp_path / "space", {**places, **environment}))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def tiny_settings_text() -> str:
    """What makes a run of the tiny refuser take seconds."""
    return TINY
