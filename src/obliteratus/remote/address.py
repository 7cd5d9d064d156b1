"""Where another machine is: ``[user@]host[:port]``."""

import re
from dataclasses import dataclass

from obliteratus.remote.errors import AddressError

PATTERN = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s:@\[\]/]+))"
    r"(?::(?P<port>\d{1,5}))?"
)
LAST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A machine and who to be there. What is None comes from the SSH configuration.

    Attributes:
        host: A name, an alias of ``~/.ssh/config``, or an IP address.
        user: The login name.
        port: The TCP port.
    """

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``[user@]host[:port]``; an IPv6 address with a port stands in brackets.

        Raises:
            AddressError: ``text`` has another form, or the port is not between 1 and 65535.
        """
        found = PATTERN.fullmatch(text)
        if found is None or (found["host"] or "").startswith("-"):
            raise AddressError(
                f"{text!r} is not an address. Write user@host, user@host:port or user@[::1]:port."
            )
        port = None if found["port"] is None else int(found["port"])
        if port is not None and not 1 <= port <= LAST_PORT:
            raise AddressError(f"port {port} does not exist; ports are 1 to {LAST_PORT}.")
        return cls(found["six"] or found["host"], found["user"], port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"{user}{host}" + ("" if self.port is None else f":{self.port}")
