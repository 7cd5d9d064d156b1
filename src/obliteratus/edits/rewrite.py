"""Write one safetensors file with some of its tensors edited, and everything else byte for byte.

Types and shapes stay, so every byte keeps its place: the file is cut into pieces that a few threads
read, edit and write on their own. A matrix is one piece: as many large ones are in memory at once
as a share of what is free can hold, and one that is larger than that comes alone.
"""

import json
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from obliteratus.errors import ModelSourceError
from obliteratus.events import track
from obliteratus.models.checkpoint import StoredTensor, read_header
from obliteratus.operator.grro import MatrixChange

PIECE = 1 << 24  # 16 MiB: small enough for several threads, large enough for a disk
THREADS = 16  # as many cores edit more bytes a second than a disk writes
FREE_SHARE = 0.25
"""Of the free memory, what matrices larger than a piece may take together."""
BEHIND = 16  # pieces later the disk has what was written
PART = ".writing"


@dataclass(frozen=True)
class Slab:
    """Bytes of one file that are edited on their own: a matrix, or some rows of one.

    ``edit`` changes the tensor of ``shape`` in place and returns what that did (None for a bias);
    it needs ``copies`` times the bytes of the slab in memory.
    """

    tensor: StoredTensor
    start: int
    stop: int
    shape: tuple[int, ...]
    edit: Callable[[Tensor], MatrixChange | None]
    copies: int = 1


@dataclass(frozen=True)
class Extra:
    """A tensor to be added at the end of a file: a copy of another one under a new name.

    ``slabs``, if any, cover the bytes of the other one and edit the copy.
    """

    name: str
    of: StoredTensor
    slabs: tuple[Slab, ...] = ()


def rewrite(
    source: Path, target: Path, slabs: Sequence[Slab], *, extra: Extra | None = None
) -> Mapping[str, tuple[MatrixChange, ...]]:
    """Write ``source`` to ``target`` with ``slabs`` edited, and return what each edit did.

    The result is whole when ``target`` exists: it is written under another name, forced to disk
    and then renamed.

    Returns:
        The changes of the slabs of each stored tensor, in order.

    Raises:
        EditError: see ``edit_matrix``.
        ModelSourceError: ``source`` cannot be read.
        OSError: writing failed.
    """
    header, begin = read_header(source)
    size = source.stat().st_size
    head = _header_with(header, extra) if extra else None
    shift = 0 if head is None else len(head) - begin
    part = target.with_name(target.name + PART)
    with source.open("rb") as old, part.open("wb") as new:
        new.truncate(size + shift + (0 if extra is None else extra.of.stop - extra.of.start))
        files = _Files(source, old.fileno(), new.fileno(), shift)
        jobs = list(_jobs(0 if head is None else begin, size, slabs, files))
        if head is not None and extra is not None:
            _write(files.new, memoryview(head), 0)
            moved = replace(files, shift=size + shift - extra.of.start)
            jobs += _jobs(extra.of.start, extra.of.stop, extra.slabs, moved)
        changes = _run(jobs, f"write {target.name}")
        new.flush()
        os.fsync(new.fileno())
    part.rename(target)
    found: dict[str, list[MatrixChange]] = {}
    for name, change in changes:
        found.setdefault(name, []).append(change)
    return {name: tuple(each) for name, each in found.items()}


_Done = list[tuple[str, MatrixChange]]


@dataclass(frozen=True)
class _Job:
    """A piece of work that takes ``memory`` bytes."""

    memory: int
    run: Callable[[], _Done]


@dataclass(frozen=True)
class _Files:
    """File descriptors of both files; what lies at i in the old lies at i + shift in the new.

    ``source`` is the path of the old one, ``written`` has the places and sizes of the last pieces.
    """

    source: Path
    old: int
    new: int
    shift: int
    written: deque[tuple[int, int]] = field(default_factory=deque)

    def read(self, start: int, stop: int) -> np.ndarray:
        data = np.empty(stop - start, dtype=np.uint8)
        view = data.data
        while view:
            try:
                n_read = os.preadv(self.old, [view], stop - len(view))
            except OSError as error:
                raise self._unreadable(stop - len(view), error.strerror) from error
            if n_read == 0:
                raise self._unreadable(stop - len(view), "the file ends there")
            view = view[n_read:]
        return data

    def _unreadable(self, place: int, why: str | None) -> ModelSourceError:
        return ModelSourceError(
            f"{self.source} cannot be read at byte {place} ({why}). Check the disk, or download or "
            "copy the file again."
        )

    def copying(self, start: int, stop: int) -> _Job:
        def run() -> _Done:
            first = self._copy_in_kernel(start, stop)
            if first < stop:
                _write(self.new, self.read(first, stop).data, first + self.shift)
            self._forget(start, stop)
            return []

        return _Job(stop - start, run)

    def editing(self, slab: Slab) -> _Job:
        def run() -> _Done:
            data = self.read(slab.start, slab.stop)
            assert slab.tensor.dtype is not None  # the planner of slabs refuses packed tensors
            tensor = torch.from_numpy(data).view(slab.tensor.dtype).view(slab.shape)
            change = slab.edit(tensor)
            _write(self.new, data.data, slab.start + self.shift)
            self._forget(slab.start, slab.stop)
            return [] if change is None else [(slab.tensor.name, change)]

        return _Job(slab.copies * (slab.stop - slab.start), run)

    def _copy_in_kernel(self, start: int, stop: int) -> int:
        """Copy bytes without a way through this process; return where that ended."""
        while hasattr(os, "copy_file_range") and start < stop:  # Linux
            try:
                done = os.copy_file_range(
                    self.old, self.new, stop - start, start, start + self.shift
                )
            except OSError:  # reading and writing work everywhere, or tell which of them failed
                return start
            if not done:
                return start
            start += done
        return start

    def _forget(self, start: int, stop: int) -> None:
        """Begin to write the bytes to the disk, and free the memory in which the system keeps them.

        Otherwise all of it waits for the end of the file, and a checkpoint larger than memory
        pushes everything else out. What is still being written stays in memory, so that the pieces
        of a while ago are let go of once more.
        """
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        os.posix_fadvise(self.old, start, stop - start, os.POSIX_FADV_DONTNEED)
        place = start + self.shift, stop - start
        os.posix_fadvise(self.new, *place, os.POSIX_FADV_DONTNEED)
        self.written.append(place)
        if len(self.written) > BEHIND:
            os.posix_fadvise(self.new, *self.written.popleft(), os.POSIX_FADV_DONTNEED)


class _Room:
    """Memory that is taken for a while. More than all of it is given to one that is alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Generator[None]:
        """Wait until there is room for ``size`` bytes, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def _jobs(start: int, stop: int, slabs: Sequence[Slab], files: _Files) -> Iterator[_Job]:
    """Yield the work on the bytes from ``start`` to ``stop``, in order."""
    for slab in sorted(slabs, key=lambda slab: slab.start):
        yield from _copies(start, slab.start, files)
        yield files.editing(slab)
        start = slab.stop
    yield from _copies(start, stop, files)


def _copies(start: int, stop: int, files: _Files) -> Iterator[_Job]:
    return (
        files.copying(offset, min(offset + PIECE, stop)) for offset in range(start, stop, PIECE)
    )


def _run(jobs: Sequence[_Job], task: str) -> _Done:
    """Run the jobs on a few threads, as many larger than a piece as there is room for."""
    room = _Room(int(FREE_SHARE * psutil.virtual_memory().available))

    def guarded(job: _Job) -> _Done:
        if job.memory <= PIECE:
            return job.run()
        with room.taken(job.memory):
            return job.run()

    threads = min(THREADS, 1 + (os.cpu_count() or 1))  # one may wait for the disk
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(guarded, job) for job in jobs]
        try:
            done: _Done = []
            for each in track(waiting, task=task, total=len(waiting), unit="pieces"):
                done.extend(each.result())
        finally:  # where one failed, the rest need not be tried
            pool.shutdown(cancel_futures=True)
    return done


def _header_with(header: dict[str, object], extra: Extra) -> bytes:
    """Return a header, with its length, that also names ``extra`` after all other data."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max(entry["data_offsets"][1] for entry in tensors.values())  # pyright: ignore
    entry = {
        "dtype": extra.of.kind,
        "shape": list(extra.of.shape),
        "data_offsets": [end, end + extra.of.stop - extra.of.start],
    }
    text = json.dumps({**header, extra.name: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to eight bytes
    return struct.pack("<Q", len(text)) + text


def _write(file: int, view: memoryview, start: int) -> None:
    while view:
        n_written = os.pwrite(file, view, start)
        view, start = view[n_written:], start + n_written
