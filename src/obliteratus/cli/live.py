"""The live screen of a terminal: the stages, the task in progress, and what is worth reading."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from obliteratus.amounts import duration, rate, share_done
from obliteratus.cli.errors import Stream
from obliteratus.cli.render import Screen, deviation_text
from obliteratus.events import (
    DeviationRecorded,
    Event,
    Note,
    Progress,
    Stage,
    StageFinished,
    StageStarted,
)

FRAMES_PER_SECOND = 8
BAR_WIDTH, NARROW_BAR = 28, 6
NAME_WIDTH = 9  # of the name of a stage, and of the word "deviation"
GAP = 2
INDENT = 1 + 1 + NAME_WIDTH + 3  # where the texts begin, after three gaps of one
Status = Literal["waiting", "running", "partial", "done", "failed"]
MARKS: dict[Status, tuple[str, str, str]] = {
    "waiting": ("·", ".", "dim"),
    "running": ("•", "*", "cyan"),
    "partial": ("◐", "~", "green"),
    "done": ("✓", "+", "green"),
    "failed": ("✗", "x", "red"),
}
"""Glyph, the same for terminals without Unicode, and style."""


@dataclass
class Row:
    """One stage as the screen shows it. A stage may run several times: its times add up."""

    stage: Stage
    status: Status = "waiting"
    text: str = ""
    seconds: float = 0.0
    runs: int = 0
    is_cached: bool = False
    started: float = 0.0


class LiveScreen(Screen):
    """Shows the stages while they run; notes and deviations stay above them."""

    def __init__(self, stream: Stream, stages: Sequence[Stage]) -> None:
        """``stages`` are listed from the start, in this order."""
        super().__init__(stream)
        self.rows = {stage: Row(stage) for stage in stages}
        self._order = list(stages)
        self._progress: Progress | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None

    @override
    def title(self, text: str) -> None:
        self.console.print(Padding(Text(text, style="bold"), (1, 0, 0, 1)))
        self._begin()

    @override
    def show_event(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._start(event)
        elif isinstance(event, StageFinished):
            self._finish(event)
        elif isinstance(event, Note):
            self._remark("note", event.text, "cyan")
        elif isinstance(event, DeviationRecorded):
            self._remark("deviation", deviation_text(event), "yellow")
        elif isinstance(event, Progress):
            self._progress = event

    @override
    def say(self, *parts: RenderableType) -> None:
        self._freeze()
        super().say(*parts)

    @override
    def close(self, error: Exception | None) -> None:
        for row in self.rows.values():
            if row.status == "running":
                row.seconds += time.monotonic() - row.started
                row.status = "failed" if error else "done"
        self._progress = None
        self._freeze()

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Draw the stages, and below the running one the task with its rate and time left."""
        width = max((len(_took(row)) for row in self.rows.values()), default=0)
        yield Text()
        for stage in self._order:
            yield self._line(self.rows[stage], options, width)
            if stage == self.stage and self._progress is not None:
                yield self._bar(self._progress, options)

    def _start(self, event: StageStarted) -> None:
        row = self.rows.setdefault(event.stage, Row(event.stage))
        if event.stage not in self._order:
            self._order.append(event.stage)
        row.status, row.text, row.is_cached = "running", event.text, False
        row.runs += 1
        row.started = time.monotonic()
        self._progress = None
        self._begin()

    def _finish(self, event: StageFinished) -> None:
        row = self.rows[event.stage]
        earlier = self._order[: self._order.index(event.stage)]
        is_early = any(self.rows[stage].status == "waiting" for stage in earlier)
        row.status = "partial" if is_early else "done"
        row.text, row.is_cached = event.text, event.cached
        row.seconds += event.seconds
        self._progress = None

    def _begin(self) -> None:
        if self._live is None and self._order:
            self._live = Live(self, console=self.console, refresh_per_second=FRAMES_PER_SECOND)
            self._live.start()

    def _freeze(self) -> None:
        """Leave the last frame where it is; what follows is printed below it."""
        if self._live is not None:
            live, self._live = self._live, None
            live.transient = not any(row.runs for row in self.rows.values())
            live.stop()
            self.console.print()

    def _remark(self, label: str, text: str, style: str) -> None:
        grid = _columns()
        grid.add_column(overflow="fold", ratio=1)
        grid.add_row("", Text("!", style=style), Text(label, style=style), Text(text))
        self.console.print(grid)

    def _line(self, row: Row, options: ConsoleOptions, width: int) -> Table:
        is_moving = self._live is not None and self._live.is_started
        is_running = row.status == "running"
        is_next = row.stage == self._order[0] and not any(row.runs for row in self.rows.values())
        glyph, ascii_glyph, style = MARKS[row.status]
        mark: RenderableType = Text(ascii_glyph if options.ascii_only else glyph, style=style)
        if (is_running or is_next) and is_moving and not options.ascii_only:
            mark = self._spinner
        name_style = "bold" if is_running else "dim" if row.status == "waiting" else ""
        text = Text("starting" if is_next else row.text, style="" if is_running else "dim")
        grid = _columns()
        # A frame must not change its height while it moves; the last one shows everything.
        grid.add_column(ratio=1, no_wrap=is_moving, overflow="ellipsis" if is_moving else "fold")
        grid.add_column(width=width, justify="right", style="dim")
        grid.add_row("", mark, Text(row.stage.upper(), style=name_style), text, _took(row))
        return grid

    def _bar(self, event: Progress, options: ConsoleOptions) -> RenderableType:
        done = share_done(event.done, event.total, event.unit)
        pace = rate(event.rate, event.unit) if event.rate > 0 else ""
        left = f"{duration(event.seconds_left)} left" if event.rate > 0 else ""
        room = options.max_width - INDENT - 2 * GAP  # for the task, the bar and these texts
        texts = [text for text in (done, pace, left) if text]
        if pace and len(event.task) + NARROW_BAR + _width(texts) > room:
            texts.remove(pace)
        rest = room - _width(texts)
        task = Text(event.task)
        task.truncate(max(rest - NARROW_BAR, 1), overflow="ellipsis")
        bar_width = min(max(rest - len(task), NARROW_BAR), BAR_WIDTH)
        bar = ProgressBar(total=max(event.total, 1), completed=event.done, width=bar_width)
        grid = Table.grid(padding=(0, GAP, 0, 0))
        for _ in range(2 + len(texts)):
            grid.add_column(no_wrap=True)
        grid.add_row(task, bar, Text(done), *(Text(text, style="dim") for text in texts[1:]))
        return Padding(grid, (0, 0, 0, INDENT))


def _took(row: Row) -> str:
    if row.is_cached:
        return "cached"
    since = time.monotonic() - row.started if row.status == "running" else 0.0
    return duration(row.seconds + since) if row.runs else ""


def _width(texts: Sequence[str]) -> int:
    return sum(len(text) + GAP for text in texts)


def _columns() -> Table:
    """Return a grid with the columns of margin, mark and name; texts follow in a fourth."""
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    for width in (1, 1, NAME_WIDTH):
        grid.add_column(width=width)
    return grid
