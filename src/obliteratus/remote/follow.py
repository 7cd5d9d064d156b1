"""The events of a job on another machine, as they are written there."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import asyncssh

from obliteratus.remote.errors import RemoteError
from obliteratus.remote.jobs import Job
from obliteratus.remote.link import Link, agent

PAUSE = 0.3  # seconds between two looks at the file
SILENCE = 10.0  # seconds without an event after which the process itself is looked at
LAST_BYTES = 2000  # of its standard error, for the message
Hear = Callable[[dict[str, Any]], None]


class Follower:
    """Reads a job's events from where it stopped, however often the link is cut."""

    def __init__(self, link: Link, job: Job, hear: Hear) -> None:
        self._link, self._job, self._hear = link, job, hear
        self._offset, self._rest = 0, b""

    async def to_the_end(self) -> int:
        """Hear every event, in order and once, and return the job's exit code.

        Raises:
            RemoteError: the job ended without saying how.
        """
        return await self._link.persistently(self._read)

    async def _read(self, connection: asyncssh.SSHClientConnection) -> int:
        quiet_since = time.monotonic()
        async with connection.start_sftp_client() as sftp:
            while True:
                ended = await sftp.exists(f"{self._job.folder}/exit_code")
                if await self._take(sftp):
                    quiet_since = time.monotonic()
                elif ended:
                    async with sftp.open(f"{self._job.folder}/exit_code", "rb") as file:
                        return int(await file.read())
                elif time.monotonic() - quiet_since > SILENCE:
                    await self._check(connection)
                    quiet_since = time.monotonic()
                else:
                    await asyncio.sleep(PAUSE)

    async def _take(self, sftp: asyncssh.SFTPClient) -> bool:
        """Hear what was written since the last look; say whether there was any."""
        path = f"{self._job.folder}/events.jsonl"
        if not await sftp.exists(path):
            return False
        async with sftp.open(path, "rb") as file:
            new = await file.read(-1, self._offset)
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        return bool(new)

    async def _check(self, connection: asyncssh.SSHClientConnection) -> None:
        state = await agent(connection, self._job.python, "state", self._job.folder)
        if not state["lives"] and state["exit_code"] is None:
            raise RemoteError(
                f"the job {self._job.name} ended without an exit code: the machine restarted, or "
                "somebody killed it. What it had finished is in the cache there; run the same "
                "command again to go on."
            )


async def last_words(connection: asyncssh.SSHClientConnection, job: Job) -> str:
    """Return the last line of the job's standard error, or an empty text."""
    async with connection.start_sftp_client() as sftp:
        path = f"{job.folder}/stderr.log"
        if not await sftp.exists(path):
            return ""
        size = await sftp.getsize(path) or 0
        async with sftp.open(path, "rb") as file:
            text = await file.read(LAST_BYTES, max(0, size - LAST_BYTES))
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
