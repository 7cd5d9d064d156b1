"""The processes of one run: which of them this is, and values that all of them must have.

``torchrun`` starts a run in several processes, which all go the same way through the program. They
can because whatever decides the way is the same in each: it is computed from equal values, or the
first process computes it and the others are told. Only the first one writes files and speaks. In a
run of one process, and before a group is joined, nothing is exchanged.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun. ``WORLD_SIZE`` alone is set by cluster managers for other reasons."""
PATIENCE = timedelta(hours=4)
"""How long one waits for another, which may be hashing a checkpoint of a terabyte. One that ended
is noticed at once, by its closed connection."""
LOST = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""How it is told that a process at the other end of a connection has ended."""


def launched() -> int:
    """Return how many processes torchrun has started for this run; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if LAUNCHED in os.environ else 1


def is_first() -> bool:
    """Say whether this process writes and speaks: the first one, or the only one."""
    return launched() == 1 or os.environ["RANK"] == "0"


def number_here() -> int:
    """Return this process's place among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join(backend: str) -> None:
    """Make one group of the processes that torchrun has started, unless they are one already."""
    if _group() is not None:
        return
    from torch import distributed

    distributed.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Take leave of the others, if a group was joined."""
    group = _group()
    if group is not None:
        group.destroy_process_group()


def count() -> int:
    """Return the number of processes in the group; 1 without one."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def number() -> int:
    """Return this process's place in the group, from 0."""
    group = _group()
    return 0 if group is None else int(group.get_rank())


def from_first(compute: Callable[[], T]) -> T:
    """Return in every process what ``compute`` returns in the first; elsewhere it is not called.

    The value is pickled. Where ``compute`` raises, the others learn it as a lost process.
    """
    group = _group()
    if group is None:
        return compute()
    held: list[Any] = [compute() if number() == 0 else None]
    group.broadcast_object_list(held, src=0)
    return held[0]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in order; each is pickled."""
    group = _group()
    if group is None:
        return [value]
    found: list[Any] = [None] * count()
    group.all_gather_object(found, value)
    return found


def is_lost(error: BaseException | None) -> bool:
    """Say whether ``error``, or what caused it, is that another process of the group has ended."""
    while error is not None and count() > 1:
        if isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in LOST):
            return True
        error = error.__cause__
    return False


def _group() -> Any:
    """Return ``torch.distributed`` where a group was joined, else None; torch is not imported."""
    module = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return module
