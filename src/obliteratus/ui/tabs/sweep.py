"""Strength Sweep: what a dose does, as curves; a point of them can be talked to, or saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from obliteratus.errors import ObliteratusError, UsageError
from obliteratus.statistics.words import MINUS
from obliteratus.store import read_json
from obliteratus.ui.curves import drawn
from obliteratus.ui.drawing import alert
from obliteratus.ui.fields import (
    QUIET,
    behaviour_field,
    checked,
    lines,
    method_names,
    model_field,
    named,
    rare_fields,
    rare_words,
    short,
)
from obliteratus.ui.jobs import Order, View
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.panel import panel
from obliteratus.ui.tabs.chat import Ports, reaching

LEAD = (
    "<p class='lead'>One direction, many strengths, one model in memory. Everything is measured on "
    "select prompts, so that the test prompts are unseen when a strength has been chosen.</p>"
)
IDLE = "No sweep is selected."
UNCHOSEN = "<p class='muted'>Choose a point of the first curve.</p>"
SWEEP_FILE, DIRECTIONS_FILE = "sweep.json", "directions.safetensors"
CHOOSE = """
const choose = (event) => {
  const dot = event.target.closest("[data-strength]");
  if (dot) trigger("click", { strength: Number(dot.dataset.strength) });
};
element.addEventListener("click", choose);
element.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(event); }
});
"""


def build(lab: Laboratory, page: gr.Blocks, tabs: gr.Tabs, talking: Ports) -> None:
    """Build the tab; ``talking`` are the fields of the chat that a chosen point is put into."""
    gr.HTML(LEAD)
    asked = _fields(lab, page)
    rare = rare_fields(name="sweep")

    def order(*values: Any) -> Order:
        return _order(lab, _Asked(*values[: len(asked)]), values[len(asked) :])

    curves = gr.HTML(render=False, js_on_load=CHOOSE, elem_id="sweep-curves")
    folder = gr.Textbox(visible=False, render=False)
    ran = panel(
        lab, page, "sweep",
        button="Run sweep",
        idle=IDLE,
        inputs=[*asked, *rare.inputs],
        order=order,
        outputs=[curves, folder],
        result=_result,
    )  # fmt: skip
    curves.render()
    folder.render()
    chosen = gr.State(None)
    with gr.Row(elem_classes="actions"):
        said = gr.HTML(UNCHOSEN, elem_id="sweep-chosen")
        talk = gr.Button(
            "Chat at this strength", interactive=False, elem_id="sweep-talk", scale=0, min_width=210
        )
        keep = gr.Button(
            "Save the model at it", interactive=False, elem_id="sweep-save", scale=0, min_width=210
        )

    def save(identity: str, where: str, strength: float) -> str:
        try:
            job = lab.jobs.submit(_saving(lab, identity, Path(where), strength))
        except ObliteratusError as error:
            return alert(str(error))
        return f"<p>{job.order.title} is in the queue; it is shown under Obliterate.</p>"

    curves.click(_choose, [folder], [chosen, curves, said, talk, keep], **QUIET)
    talk.click(
        _speak, [folder, chosen],
        [tabs, talking.model, talking.directions, talking.strength], **QUIET,
    )  # fmt: skip
    keep.click(save, [ran.runs, folder, chosen], said, **QUIET)


@dataclass(frozen=True)
class _Asked:
    """The values of the fields that are not folded, in their order."""

    model: str | None
    method: str
    behaviour: str
    low: float
    high: float
    points: float
    prompts: float


def _fields(lab: Laboratory, page: gr.Blocks) -> list[Any]:
    """Return the fields in the order of :class:`_Asked`."""
    with gr.Row(elem_classes="fields"):
        model = model_field(lab, page, name="sweep-model")
        method = gr.Dropdown(
            method_names(), value="advanced", label="Method", elem_id="sweep-method"
        )
        behaviour = behaviour_field(lab, page, name="sweep-behaviour")
    with gr.Row(elem_classes="fields"):
        low = gr.Slider(-4, 1, value=-1, step=0.5, label="From", elem_id="sweep-low")
        high = gr.Slider(0, 4, value=2, step=0.5, label="To", elem_id="sweep-high")
        points = gr.Slider(3, 25, value=9, step=1, label="Points", elem_id="sweep-points",
                           info="0 is one; later ones go where a curve bends.")  # fmt: skip
        prompts = gr.Slider(0, 128, value=16, step=4, label="Select prompts of each class",
                            info="0 takes all.", elem_id="sweep-prompts")  # fmt: skip
    return [model, method, behaviour, low, high, points, prompts]


def _order(lab: Laboratory, asked: _Asked, rare: Sequence[Any]) -> Order:
    name = named(asked.model)
    if rare[0]:
        raise UsageError("a sweep takes its system prompt from the settings: write "
                         "prompts.system=… under Other settings.")  # fmt: skip
    extra = rare_words(*rare)
    checked(asked.method, lines(rare[-1]), {"behaviour": asked.behaviour})
    folder = lab.room_for(f"sweep-{short(name)}-{asked.method}")
    words = ["sweep", "--json", "-o", str(folder), "--method", asked.method]
    words += ["--behaviour", asked.behaviour, f"--strengths={asked.low:g}..{asked.high:g}"]
    words += ["--points", str(int(asked.points)), "--prompts", str(int(asked.prompts)), *extra]
    return Order("sweep", folder.name, name, (*words, "--", name), folder)


def _choose(where: str, event: gr.EventData) -> tuple[Any, ...]:
    strength = float(event._data["strength"])  # pyright: ignore[reportPrivateUsage]
    found = read_json(Path(where) / SWEEP_FILE)
    text = f"<p>Strength <b>{f'{strength:g}'.replace('-', MINUS)}</b> is chosen.</p>"
    able = gr.Button(interactive=True)
    return strength, drawn(found["points"], strength), text, able, able


def _speak(where: str, strength: float) -> tuple[Any, ...]:
    """Open the chat at ``strength`` of the sweep, which counts in the strength of its edit."""
    found = read_json(Path(where) / SWEEP_FILE)
    directions = str(Path(where) / DIRECTIONS_FILE)
    slider = reaching(strength * found["strength"])
    return gr.Tabs(selected="chat"), found["model"], directions, slider


def _result(view: View) -> tuple[str, str]:
    folder = view.job.order.output
    return drawn(read_json(folder / SWEEP_FILE)["points"], None), str(folder)


def _saving(lab: Laboratory, identity: str, where: Path, strength: float) -> Order:
    """Return the run that makes a model at ``strength`` of a sweep, with the sweep's settings."""
    swept = lab.jobs.find(identity).order
    found = read_json(where / SWEEP_FILE)
    start = swept.words.index("--method")
    rest = [word for word in swept.words[start:] if not word.startswith("--strengths=")]
    for flag in ("--points", "--prompts"):
        place = rest.index(flag)
        del rest[place : place + 2]
    folder = lab.room_for(f"{short(swept.model)}-{found['method']}-{strength:g}")
    given = ["--set", f"edit.strength={strength * found['strength']:.6g}"]
    words = ["obliterate", "--json", "-o", str(folder), *given, *rest]
    return Order("obliterate", folder.name, swept.model, tuple(words), folder)
