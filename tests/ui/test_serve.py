"""Where the page may listen, and what is told where it may not."""

import contextlib
import socket

import pytest

from obliteratus.errors import UsageError
from obliteratus.ui.serve import checked, is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_other_machines_need_a_password(host: str) -> None:
    with pytest.raises(UsageError, match="can be reached from other machines"):
        checked(host, 0, None)


def test_with_a_password_any_address_is_taken() -> None:
    place = checked("0.0.0.0", 0, "me:secret:with:colons")
    assert place.auth == ("me", "secret:with:colons")
    assert place.port > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("auth", ["me", ":secret", "me:", ":"])
def test_a_password_of_another_form_is_refused(auth: str) -> None:
    with pytest.raises(UsageError, match="USER:PASSWORD"):
        checked("127.0.0.1", 0, auth)


def test_a_port_that_is_taken_is_told() -> None:
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port} \(.*--port"):
            checked("127.0.0.1", port, None)
