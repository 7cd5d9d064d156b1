"""Several large matrices are edited at once, as far as memory allows."""

import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from obliteratus.edits import rewrite as rewrite_module
from obliteratus.edits.rewrite import BEHIND, FREE_SHARE, Slab, rewrite
from obliteratus.models.checkpoint import read_checkpoint

N, SIZE = 12, 64 * 64 * 4  # matrices, and the bytes of each


class Watched:
    """An edit that negates, and sees how many of its kind run at the same time."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, matrix: Tensor) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)  # the others come in, where they may
        matrix.neg_()
        with self._lock:
            self.running -= 1


@pytest.mark.parametrize(
    ("room", "copies", "most"),
    [
        (0.5, 1, 1),  # more than there is room for: alone
        (3.5, 1, 3),
        (3.5, 2, 1),  # as much room, but each needs twice its bytes
        (100.0, 1, 5),  # one for each thread
    ],
)
def test_as_many_matrices_at_once_as_there_is_room_for(
    room: float, copies: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(available=room * SIZE / FREE_SHARE)
    monkeypatch.setattr(rewrite_module.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(rewrite_module.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(rewrite_module, "PIECE", SIZE // 2)
    before = {f"matrix.{n}": torch.randn(64, 64) for n in range(N)}
    source, target = tmp_path / "model.safetensors", tmp_path / "edited.safetensors"
    save_file(before, source)
    watched = Watched()
    slabs = [
        Slab(stored, stored.start, stored.stop, stored.shape, watched, copies)
        for stored in read_checkpoint(tmp_path).tensors.values()
    ]
    rewrite(source, target, slabs)
    assert watched.most == most
    after = load_file(target)
    assert all(torch.equal(after[name], -before[name]) for name in before)


def test_written_pieces_are_let_go_of_at_once_and_again_when_the_disk_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that are still on their way to the disk stay in memory the first time."""
    asked: dict[int, Counter[int]] = {}
    monkeypatch.setattr(
        rewrite_module.os,
        "posix_fadvise",
        lambda file, start, size, advice: asked.setdefault(file, Counter()).update([start]),
    )
    monkeypatch.setattr(rewrite_module, "PIECE", SIZE)
    save_file({"matrix": torch.randn(64, 64 * 30)}, tmp_path / "model.safetensors")
    rewrite(tmp_path / "model.safetensors", tmp_path / "edited.safetensors", [])
    old, new = sorted(asked.values(), key=lambda counts: counts.total())
    assert set(old.values()) == {1}
    assert len(new) == len(old) == 31  # the header as well
    assert sorted(new.values()) == [1] * BEHIND + [2] * (31 - BEHIND)
