"""A run on the page: started, watched, cancelled and read; the same for every tab that runs one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from obliteratus.errors import ObliteratusError
from obliteratus.ui.drawing import alert, progress
from obliteratus.ui.fields import QUIET
from obliteratus.ui.jobs import Job, Kind, Order, View
from obliteratus.ui.laboratory import Laboratory

SECONDS = 0.7  # between two looks at a run that goes on
SHOWN_JOBS = 30  # the newest, in the list of runs
UNDRAWN = ""  # no result is on the page


@dataclass(frozen=True)
class Panel:
    """The parts of a run's place on the page, for a tab that adds to them."""

    runs: gr.Dropdown
    progress: gr.HTML
    timer: gr.Timer


def panel(
    lab: Laboratory,
    page: gr.Blocks,
    kind: Kind,
    *,
    button: str,
    idle: str,
    inputs: Sequence[Any],
    order: Callable[..., Order],
    outputs: Sequence[Any],
    result: Callable[[View], Sequence[Any]],
) -> Panel:
    """Build the buttons, the list of runs and their progress, and draw results into ``outputs``.

    ``order`` makes an order of the values of ``inputs``, or raises an
    :class:`~obliteratus.errors.ObliteratusError` whose sentence is shown. ``result`` returns one
    value for each of ``outputs`` when a run has finished; before and otherwise they are emptied.
    """
    with gr.Row(elem_classes="actions"):
        start = gr.Button(
            button, variant="primary", elem_id=f"{kind}-start", scale=0, min_width=160
        )
        stop = gr.Button(
            "Cancel", interactive=False, elem_id=f"{kind}-cancel", scale=0, min_width=110
        )
        runs = gr.Dropdown(
            _choices(lab, kind),
            label="Runs here",
            elem_id=f"{kind}-runs",
            filterable=False,
            scale=1,
        )
    refused = gr.HTML(elem_id=f"{kind}-refused")
    shown = gr.HTML(progress(None, now=0.0, idle=idle), elem_id=f"{kind}-progress")
    timer = gr.Timer(SECONDS, active=False)
    drawn = gr.State(UNDRAWN)
    looked = [shown, stop, timer, drawn, *outputs]
    deeds = _Deeds(lab, kind, idle, order, outputs, result)
    start.click(deeds.begin, list(inputs), [runs, refused], **QUIET)
    runs.change(deeds.look, [runs, drawn], looked, **QUIET)
    timer.tick(deeds.look, [runs, drawn], looked, **QUIET)
    stop.click(deeds.end, [runs], None, concurrency_limit=None, show_progress="hidden").then(
        deeds.look, [runs, drawn], looked, **QUIET
    )
    page.load(deeds.refresh, [runs], [runs], **QUIET).then(
        deeds.look, [runs, drawn], looked, **QUIET
    )
    return Panel(runs, shown, timer)


@dataclass(frozen=True)
class _Deeds:
    """What the buttons, the list and the timer of a panel do."""

    lab: Laboratory
    kind: Kind
    idle: str
    order: Callable[..., Order]
    outputs: Sequence[Any]
    result: Callable[[View], Sequence[Any]]

    def begin(self, *values: Any) -> tuple[Any, ...]:
        try:
            job = self.lab.jobs.submit(self.order(*values))
        except ObliteratusError as error:
            return gr.skip(), alert(str(error))
        return gr.Dropdown(_choices(self.lab, self.kind), value=job.id), ""

    def look(self, chosen: str | None, before: str) -> tuple[Any, ...]:
        """Return the run's progress, whether it can be cancelled, and its result when it ends.

        ``before`` is the run whose result is on the page already.
        """
        if not chosen:
            return self._still(progress(None, now=0.0, idle=self.idle))
        try:
            view = self.lab.jobs.view(chosen)
            key = chosen if view.state == "finished" else UNDRAWN
            if key == before:
                drawn: Sequence[Any] = tuple(gr.skip() for _ in self.outputs)
            else:
                drawn = self.result(view) if key else self._emptied
        except ObliteratusError as error:
            return self._still(alert(str(error)))
        return (
            progress(view, now=time.time(), idle=self.idle),
            gr.Button(interactive=not view.is_over),
            gr.Timer(active=not view.is_over),
            key,
            *drawn,
        )

    def end(self, chosen: str | None) -> None:
        if chosen:
            self.lab.jobs.cancel(self.lab.jobs.find(chosen))

    def refresh(self, chosen: str | None) -> Any:
        choices = _choices(self.lab, self.kind)
        known = [identity for _, identity in choices]
        return gr.Dropdown(choices, value=chosen if chosen in known else next(iter(known), None))

    def _still(self, text: str) -> tuple[Any, ...]:
        """Return ``text`` where nothing runs and there is no result."""
        return text, gr.Button(interactive=False), gr.Timer(active=False), UNDRAWN, *self._emptied

    @property
    def _emptied(self) -> tuple[Any, ...]:
        return tuple(_empty(each) for each in self.outputs)


def _choices(lab: Laboratory, kind: Kind) -> list[tuple[str, str]]:
    return [(_title(job), job.id) for job in lab.jobs.all(kind)[:SHOWN_JOBS]]


def _title(job: Job) -> str:
    return f"{job.order.title}, {time.strftime('%d %b %H:%M', time.localtime(job.created))}"


def _empty(component: Any) -> Any:
    """Return what clears ``component``."""
    return None if isinstance(component, gr.File | gr.Plot) else component.__class__(value="")
