"""What one visitor has before him in a tab: a model that is open, and what was said."""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import gradio as gr

from obliteratus.errors import UsageError
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.talks import Talk

T = TypeVar("T")
SECONDS_BETWEEN = 0.12  # two pictures of an answer that is being written
DIRECTIONS_SUFFIX = ".safetensors"


@dataclass
class Desk:
    """It lives as long as the visitor's page, in memory only.

    ``is_stopped`` is also set while a model is still being loaded. ``page`` is another number when
    the visitor has cleared what was said.
    """

    talk: Talk | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    is_stopped: bool = False
    page: int = 0

    def begin(self) -> int:
        """Get ready for a request that nobody has stopped yet; return the page that it is for."""
        self.is_stopped = False
        return self.page

    def clear(self) -> None:
        """Stop what is being answered and forget what was said."""
        self.stop()
        self.turns = []
        self.page += 1

    def stop(self) -> None:
        """End what is being answered, or what is asked when its model is there."""
        self.is_stopped = True
        if self.talk is not None:
            self.talk.stop()

    def opened(self, lab: Laboratory, model: str, beside: str | None) -> Talk:
        """Return the talk with ``model``; ``beside`` is its edit, or directions to steer along.

        Raises:
            ObliteratusError: it cannot be loaded, or too many are in use.
        """
        other, directions = None, None
        if beside is not None and beside.endswith(DIRECTIONS_SUFFIX):
            directions = Path(beside).expanduser()
        else:
            other = beside
        self.talk = lab.talks.open(model, other=other, directions=directions)
        return self.talk


def desk_state() -> gr.State:
    """Return the component that holds a visitor's :class:`Desk`; leaving the page stops it."""
    return gr.State(Desk(), delete_callback=Desk.stop)


def steering_choices(lab: Laboratory) -> list[tuple[str, str]]:
    """Return the directions that runs have kept, as (what is shown, the file)."""
    return [
        (f"along {each.folder.name}", str(each.directions))
        for each in lab.saved()
        if each.directions is not None
    ]


def given(text: str | None, what: str) -> str:
    """Return ``text`` without the space around it.

    Raises:
        UsageError: nothing is left; ``what`` says what is to be given.
    """
    found = (text or "").strip()
    if not found:
        raise UsageError(f"{what}.")
    return found


def paced(items: Iterable[T], *, seconds: float = SECONDS_BETWEEN) -> Generator[list[T]]:
    """Yield ``items`` in order, those of each ``seconds`` together: a page is drawn for each list.

    Closing it closes ``items``.
    """
    waiting: list[T] = []
    drawn = -seconds
    source: Iterator[T] = iter(items)
    try:
        for item in source:
            waiting.append(item)
            if time.monotonic() - drawn >= seconds:
                yield waiting
                waiting, drawn = [], time.monotonic()
        if waiting:
            yield waiting
    finally:
        if isinstance(source, Generator):
            source.close()
