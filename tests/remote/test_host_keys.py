"""Nothing is sent to a machine whose key is not trusted; every refusal says what to do."""

import asyncio
import errno

import pytest

from obliteratus.remote.address import Address
from obliteratus.remote.errors import HostKeyError, RemoteError
from obliteratus.remote.hostkeys import known_hosts_file
from obliteratus.remote.link import Link, output
from obliteratus.remote.machine import look


def say_hello(server, *, ask=None):
    async def hello():
        async with Link(server.address, ask=ask) as link:
            return await link.persistently(lambda c: output(c, ["echo", "hello"]))

    return asyncio.run(hello())


def test_a_known_machine_is_trusted(server):
    assert say_hello(server) == "hello\n"


def test_a_new_machine_is_refused_where_nobody_can_be_asked(server):
    known_hosts_file().unlink()
    with pytest.raises(HostKeyError, match=r"never met before.*SHA256:"):
        say_hello(server)
    assert not known_hosts_file().exists()


def test_a_new_machine_is_trusted_after_a_yes_and_stays_known(server):
    known_hosts_file().unlink()
    questions = []

    def yes(question):
        questions.append(question)
        return True

    assert say_hello(server, ask=yes) == "hello\n"
    assert say_hello(server) == "hello\n"
    assert len(questions) == 1
    assert "SHA256:" in questions[0]


def test_a_new_machine_is_refused_after_a_no(server):
    known_hosts_file().unlink()
    with pytest.raises(HostKeyError, match="was not accepted"):
        say_hello(server, ask=lambda _question: False)
    assert not known_hosts_file().exists()


def test_a_changed_key_is_refused_and_nobody_is_asked(server):
    server.new_host_key()
    before = known_hosts_file().read_text()
    with pytest.raises(HostKeyError, match=r"is not the one in .*ssh-keygen -R \[127.0.0.1\]"):
        say_hello(server, ask=lambda _question: pytest.fail("asked"))
    assert known_hosts_file().read_text() == before


def test_a_line_is_added_behind_a_file_without_a_last_newline(server):
    known_hosts_file().write_text("elsewhere ssh-ed25519 AAAA")
    say_hello(server, ask=lambda _question: True)
    lines = known_hosts_file().read_text().splitlines()
    assert lines[0] == "elsewhere ssh-ed25519 AAAA"
    assert len(lines) == 2


def test_a_key_that_the_machine_does_not_know_is_refused(server):
    (server.folder / "authorized_keys").write_text("")
    with pytest.raises(RemoteError, match=r"refused the login.*ssh-copy-id"):
        say_hello(server)


def test_a_machine_that_does_not_answer(home):
    async def connect():
        async with Link(Address("127.0.0.1", None, 1)):
            pass

    with pytest.raises(RemoteError, match="cannot be reached"):
        asyncio.run(connect())


def test_a_machine_without_a_suitable_python(server):
    async def see():
        async with Link(server.address) as link:
            return await link.persistently(lambda c: look(c, "x", "/bin/false"))

    with pytest.raises(RemoteError, match=r"/bin/false is not a Python 3.11.*--remote-python"):
        asyncio.run(see())


def test_a_machine_says_what_it_has(server):
    async def see():
        async with Link(server.address) as link:
            return await link.persistently(lambda c: look(c, str(server.root), None))

    machine = asyncio.run(see())
    assert machine.root == str(server.root)
    assert machine.free > 0
    assert machine.venv


def test_a_command_that_fails_says_its_last_words(server):
    async def fail():
        async with Link(server.address) as link:
            return await link.persistently(
                lambda c: output(c, ["sh", "-c", "echo first >&2; echo last >&2; exit 3"])
            )

    with pytest.raises(RemoteError, match="code 3: last"):
        asyncio.run(fail())


def test_a_link_that_stays_cut_gives_up(installed, wire):
    async def cut():
        address = Address("127.0.0.1", None, wire.port)
        async with Link(address, patience=1.0) as link:
            await link.persistently(lambda c: output(c, ["true"]))
            wire.cut(0.0)
            wire.is_cut = True
            await link.persistently(lambda c: output(c, ["true"]))

    with pytest.raises(RemoteError, match=r"was cut for 1 s.*goes on"):
        asyncio.run(cut())


def test_a_full_disk_here_is_not_taken_for_a_cut_link(server):
    tries = []

    async def write(_connection):
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    async def fail():
        async with Link(server.address, patience=1.0) as link:
            await link.persistently(write)

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(fail())
    assert len(tries) == 1
