"""Serving the page: where it listens, who may see it, and what it takes."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obliteratus.errors import UsageError
from obliteratus.ui.facts import Reader
from obliteratus.ui.jobs import Jobs
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.talks import Talks

LOOPBACK = "127.0.0.1"
PORT = 7860  # gradio's own
STORAGE = Path("/data")  # of a Space, where it has storage that outlives it
LARGEST_UPLOAD = "5mb"  # prompts are text; nothing else is taken


@dataclass(frozen=True)
class Place:
    """Where the page listens, and the (user, password) that it asks for."""

    host: str = LOOPBACK
    port: int = PORT
    auth: tuple[str, str] | None = None

    @property
    def url(self) -> str:
        """What to type into a browser."""
        return f"http://{self.host}:{self.port}"


def checked(host: str, port: int, auth: str | None) -> Place:
    """Return the place that was asked for, ``auth`` as ``user:password``.

    Raises:
        UsageError: ``host`` can be reached from other machines and nothing protects it, ``auth``
            has another form, or the port is taken.
    """
    found: tuple[str, str] | None = None
    if auth is not None:
        user, colon, password = auth.partition(":")
        if not (colon and user and password):
            raise UsageError("--auth has the form USER:PASSWORD, neither of them empty.")
        found = user, password
    if found is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and whoever reaches the page can run "
            "commands on this one. Give --auth USER:PASSWORD as well, or leave --host out and use "
            "an SSH tunnel."
        )
    with contextlib.closing(socket.socket(_family(host))) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port} ({error.strerror}). Choose another --port."
            ) from error
        port = probe.getsockname()[1]
    return Place(host, port, found)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def laboratory(
    workspace: Path, *, at_once: int = 1, has_visitors: bool = False
) -> Generator[Laboratory]:
    """Open the workspace for a page. Jobs that run go on when the block ends; talks are closed.

    Raises:
        UsageError: another server has it.
    """
    workspace = workspace.resolve()
    workspace.mkdir(parents=True, exist_ok=True)
    with Jobs(workspace, at_once=at_once).open() as jobs, Talks() as talks:
        yield Laboratory(workspace, jobs, talks, Reader().start(), has_visitors)


def launched(lab: Laboratory, place: Place, *, browser: bool = False, wait: bool = True) -> Any:
    """Serve the page of ``lab`` at ``place``, until Ctrl-C where it should ``wait``; return it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from obliteratus.ui.app import page
    from obliteratus.ui.theme import appearance

    blocks = page(lab)
    blocks.queue(default_concurrency_limit=8, api_open=False)
    blocks.launch(
        server_name=place.host,
        server_port=place.port,
        inbrowser=browser,
        auth=place.auth,
        max_file_size=LARGEST_UPLOAD,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=True,
        quiet=True,
        footer_links=[],
        prevent_thread_lock=not wait,
        **appearance(),
    )
    return blocks


def space() -> None:
    """Serve the page as a Hugging Face Space does: to everybody who may open the Space.

    Runs are written to the Space's persistent storage where it has any.
    """
    workspace = (STORAGE if os.access(STORAGE, os.W_OK) else Path.cwd()) / "out"
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")
    place = Place(host, int(os.environ.get("GRADIO_SERVER_PORT", PORT)))
    with laboratory(workspace, has_visitors=True) as lab:
        launched(lab, place)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
