"""Names of processes that outlive them, so that a note can say whose work it is."""

import psutil

PARTS = 2


def process_here(pid: int | None = None) -> str:
    """Return a name for a process of this machine (this one) that no other has, or will have.

    It is the process id and the time at which the process began: an id that was given out again is
    another name.
    """
    process = psutil.Process(pid)
    return f"{process.pid}/{process.create_time():.2f}"


def has_ended(name: str) -> bool:
    """Say whether ``name`` is that of a process which does not run on this machine (any more)."""
    parts = name.split("/")
    if len(parts) != PARTS or not parts[0].isdigit():
        return False
    try:
        process = psutil.Process(int(parts[0]))
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return is_zombie or f"{process.create_time():.2f}" != parts[1]
    except psutil.NoSuchProcess:
        return True
