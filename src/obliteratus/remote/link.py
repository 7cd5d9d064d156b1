"""A connection to another machine that comes back after it was cut."""

import errno
import shlex
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncssh
import tenacity

from obliteratus.events import Note, emit
from obliteratus.remote.address import Address
from obliteratus.remote.errors import RemoteError
from obliteratus.remote.hostkeys import Ask, accept_key

T = TypeVar("T")
PATIENCE = 900.0  # seconds without a link: a train's tunnel, a laptop that is carried home
LONGEST_PAUSE = 15.0  # seconds between two attempts
SECONDS_TO_CONNECT = 20.0
KEEPALIVE = 10.0  # seconds; after three without an answer the link counts as cut
LOST = (
    asyncssh.ConnectionLost,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.ChannelOpenError,
    ConnectionError,
    TimeoutError,
    socket.gaierror,
)
UNREACHABLE = (None, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
"""Of an OSError; asyncio gives none where several addresses failed. A full disk is none."""
REFUSED = (asyncssh.PermissionDenied, asyncssh.HostKeyNotVerifiable)


class Link:
    """The way to ``address``: an asynchronous context that connects and closes.

    ``ask`` answers whether a new machine's key is right (None: nobody can). ``patience`` is for how
    many seconds a cut link is tried again before :meth:`persistently` gives up.
    """

    def __init__(
        self, address: Address, *, ask: Ask | None = None, patience: float = PATIENCE
    ) -> None:
        self.address = address
        self._ask, self._patience = ask, patience
        self._connection: asyncssh.SSHClientConnection | None = None

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            RemoteError: nothing answers, or the login is refused.
            HostKeyError: the machine's key is not trusted.
        """
        try:
            try:
                self._connection = await self._connect()
            except asyncssh.HostKeyNotVerifiable:
                await accept_key(self.address, self._ask)
                self._connection = await self._connect()
        except asyncssh.PermissionDenied as error:
            raise RemoteError(
                f"{self.address} refused the login ({error.reason.rstrip('.')}). Passwords are not "
                f"asked for: let it know your key with `ssh-copy-id {self.address}`."
            ) from error
        except (asyncssh.DisconnectError, OSError) as error:
            raise RemoteError(
                f"{self.address} cannot be reached: {_words(error)}. Check the name, the port and "
                "that `ssh` to it works."
            ) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    @property
    def connection(self) -> asyncssh.SSHClientConnection:
        """The connection as it is now, which may be cut.

        Raises:
            RemoteError: there is none.
        """
        if self._connection is None:
            raise RemoteError(f"there is no connection to {self.address}.")
        return self._connection

    async def persistently(self, work: Callable[[asyncssh.SSHClientConnection], Awaitable[T]]) -> T:
        """Return ``work(connection)``; while the link is cut, connect and do it again.

        ``work`` must bear to be repeated from its beginning.

        Raises:
            RemoteError: the link stayed cut for longer than the patience.
        """
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_is_lost),
            wait=tenacity.wait_exponential(multiplier=0.5, max=LONGEST_PAUSE),
            stop=tenacity.stop_after_delay(self._patience),
            before_sleep=self._say,
            reraise=True,
        )
        try:
            return await retrying(self._once, work)
        except (asyncssh.Error, OSError) as error:
            if not _is_lost(error):
                raise
            raise RemoteError(
                f"the link to {self.address} was cut for {self._patience:.0f} s "
                f"({_words(error)}). What was started there goes on."
            ) from error

    async def _once(self, work: Callable[[asyncssh.SSHClientConnection], Awaitable[T]]) -> T:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        try:
            return await work(self._connection)
        except (asyncssh.Error, OSError) as error:
            if _is_lost(error):
                self._connection.abort()
                self._connection = None
            raise

    def _say(self, state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1:
            emit(Note(f"The link to {self.address} is cut; trying again."))

    async def _connect(self) -> asyncssh.SSHClientConnection:
        given = {"username": self.address.user, "port": self.address.port}
        return await asyncssh.connect(
            self.address.host,
            **{key: value for key, value in given.items() if value is not None},
            connect_timeout=SECONDS_TO_CONNECT,
            login_timeout=SECONDS_TO_CONNECT,
            keepalive_interval=KEEPALIVE,
        )


async def output(connection: asyncssh.SSHClientConnection, words: list[str]) -> str:
    """Run a command there and return its standard output.

    Raises:
        RemoteError: it failed; the message ends with the last line of its standard error.
    """
    done = await connection.run(shlex.join(words), check=False)
    if done.exit_status is None:
        raise asyncssh.ConnectionLost("the command lost its link")
    if done.exit_status != 0:
        lines = str(done.stderr or done.stdout or "").strip().splitlines()
        raise RemoteError(
            f"`{shlex.join(words[:4])} ...` failed there with code {done.exit_status}: "
            f"{lines[-1] if lines else 'it said nothing'}."
        )
    return str(done.stdout)


async def agent(
    connection: asyncssh.SSHClientConnection, python: str, verb: str, folder: str
) -> Mapping[str, Any]:
    """Ask the program there (``obliteratus.remote.agent``) and return what it answers."""
    import json

    words = [python, "-m", "obliteratus.remote.agent", verb, folder]
    return json.loads(await output(connection, words))


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, asyncssh.SFTPError) and not isinstance(error, LOST):
        return False
    if isinstance(error, asyncssh.DisconnectError):
        return not isinstance(error, REFUSED)
    if isinstance(error, OSError) and not isinstance(error, LOST):
        return error.errno in UNREACHABLE
    return isinstance(error, LOST)


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.rstrip(".")
