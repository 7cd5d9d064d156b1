"""Who is at the other end: a machine's key is known, or a person is asked, or nothing is sent."""

from collections.abc import Callable
from pathlib import Path

import asyncssh

from obliteratus.remote.address import Address
from obliteratus.remote.errors import HostKeyError

SSH_PORT = 22
Ask = Callable[[str], bool]
"""Show a question and return whether the answer was yes."""


def known_hosts_file() -> Path:
    """Return the file in which OpenSSH keeps the keys of this user's machines."""
    return Path.home() / ".ssh" / "known_hosts"


async def accept_key(address: Address, ask: Ask | None) -> None:
    """Add the key of a machine that was never met to known_hosts, if ``ask`` says yes.

    Called after a connection was refused for its host key. ``ask`` is None where nobody can answer.

    Raises:
        HostKeyError: another key is known for it, nobody can be asked, or the answer was no.
    """
    options = await asyncssh.SSHClientConnectionOptions.construct(
        host=address.host, **({} if address.port is None else {"port": address.port})
    )
    host, port = options.host or address.host, options.port or SSH_PORT
    file = known_hosts_file()
    key = await asyncssh.get_server_host_key(host, port)
    if key is None:
        raise HostKeyError(f"{address} offers no host key; nothing was sent.")
    shown = f"{key.get_algorithm()} {key.get_fingerprint()}"
    if _knows(file, host, port):
        raise HostKeyError(
            f"the host key of {address} is not the one in {file}: it is now {shown}. Somebody may "
            "be in between, or the machine was installed anew. Nothing was sent. If its owner "
            f"confirms the new key, remove the old one with `ssh-keygen -R {pattern(host, port)}`."
        )
    if ask is None:
        raise HostKeyError(
            f"{address} was never met before, and nobody can be asked here whether its key is "
            f"right ({shown}). Connect once from a terminal, with this command or with ssh."
        )
    if not ask(f"{address} was never met before. Its key is {shown}. Is that right?"):
        raise HostKeyError(f"the key of {address} was not accepted; nothing was sent.")
    file.parent.mkdir(mode=0o700, exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    line = f"{pattern(host, port)} {key.export_public_key('openssh').decode().strip()}\n"
    with file.open("a", encoding="utf-8") as known:
        known.write(line if before.endswith("\n") or not before else f"\n{line}")


def pattern(host: str, port: int) -> str:
    """Return how known_hosts writes a machine."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def _knows(file: Path, host: str, port: int) -> bool:
    if not file.exists():
        return False
    addr = host if host.replace(".", "").isdigit() or ":" in host else ""
    found = asyncssh.match_known_hosts(str(file), host, addr, None if port == SSH_PORT else port)
    return any(found)
