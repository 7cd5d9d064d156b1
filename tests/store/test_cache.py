"""An entry knows what computing it took, with everything that it was computed from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from obliteratus.store import Store, cache, content_key

FILE = "value"


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(cache, "time", found)
    return found


@pytest.fixture
def ask(tmp_path: Path, clock: Clock) -> Callable[..., tuple[str, bool]]:
    """Return a function that asks for an entry: computing takes ``seconds``, loading takes one."""

    def asked(
        name: str, seconds: float, *, store: Store, begins_with: Callable[[], object] | None = None
    ) -> tuple[str, bool]:
        def compute() -> str:
            if begins_with is not None:
                begins_with()
            clock.now += seconds
            return name

        def load(folder: Path) -> str:
            clock.now += 1
            return (folder / FILE).read_text()

        def save(value: str, folder: Path) -> None:
            (folder / FILE).write_text(value)

        return store.cached(content_key("entry", name=name), compute, save, load)

    return asked


def test_what_is_found_has_saved_what_computing_took(
    tmp_path: Path, ask: Callable[..., tuple[str, bool]]
) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    assert ask("a", 100, store=first) == ("a", False)
    assert first.saved == 0
    assert ask("a", 100, store=second) == ("a", True)
    assert second.saved == 99


def test_an_entry_counts_what_it_was_computed_from_even_if_that_was_found(
    tmp_path: Path, ask: Callable[..., tuple[str, bool]]
) -> None:
    store = Store(tmp_path)
    ask("a", 100, store=store)
    ask("b", 10, store=store, begins_with=lambda: ask("a", 100, store=store))
    assert store.saved == 99
    later = Store(tmp_path)
    assert ask("b", 10, store=later) == ("b", True)
    assert later.saved == 109  # 100 + 10 from nothing, less one second of loading


def test_an_entry_counts_what_was_computed_for_it_once(
    tmp_path: Path, ask: Callable[..., tuple[str, bool]]
) -> None:
    store = Store(tmp_path)
    ask("b", 10, store=store, begins_with=lambda: ask("a", 100, store=store))
    later = Store(tmp_path)
    ask("b", 10, store=later)
    assert later.saved == 109
