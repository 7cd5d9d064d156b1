"""Giving way: a process that computes for minutes beside one that answers a person."""

import contextlib
import os
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")


def lower_priority(by: int) -> None:
    """Lower the priority of this process and of those that it will start, by ``by`` nice levels.

    Linux schedules the processes of a session as one group, and the nice level of a process counts
    inside its session only; that of the session itself is set as well. Where a system has no such
    thing (other systems, Windows), what it has is used.
    """
    if not by:
        return
    if hasattr(os, "nice"):
        os.nice(by)
    with contextlib.suppress(OSError):  # there is no such file, or it is not ours to write
        AUTOGROUP.write_text(str(by), encoding="ascii")
