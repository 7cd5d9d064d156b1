"""Obliterate: a model and a method in, a measured model out."""

from pathlib import Path
from typing import Any

import gradio as gr

from obliteratus.pipeline.methods import method_named
from obliteratus.store import read_json
from obliteratus.ui.drawing import framed, render, report
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
from obliteratus.ui.laboratory import RECORDS, Laboratory
from obliteratus.ui.panel import panel

LEAD = (
    "<p class='lead'>Maps how the model refuses, removes it from the weights, measures both models "
    "on prompts that nothing was chosen on, and writes an ordinary model folder.</p>"
)
IDLE = (
    "No run is selected. A run of a small model takes minutes; it goes on when this page is closed."
)


def build(lab: Laboratory, page: gr.Blocks) -> None:
    """Build the tab."""
    gr.HTML(LEAD)
    with gr.Row(elem_classes="fields"):
        model = model_field(lab, page, name="obliterate-model")
        method = gr.Dropdown(
            method_names(), value="advanced", label="Method", elem_id="obliterate-method",
        )  # fmt: skip
        behaviour = behaviour_field(lab, page, name="obliterate-behaviour")
    plan = gr.HTML(_plan(lab, "advanced"), elem_id="obliterate-plan")
    with gr.Row(elem_classes="fields"):
        strength = gr.Slider(
            -1, 2, value=1, step=0.05, label="Strength", elem_id="obliterate-strength",
            info="1 removes, 0 keeps, below 0 amplifies. Left at 1 the method decides.",
        )  # fmt: skip
        gentle = gr.Checkbox(
            label="Weaken the edit until KL and perplexity pass", elem_id="obliterate-gentle"
        )
    rare = rare_fields(name="obliterate")

    def order(
        model: str | None, method: str, behaviour: str, strength: float, gentle: bool, *rest: Any
    ) -> Order:
        name = named(model)
        extra = rare_words(*rest)
        assigned = [f"edit.strength={strength:g}"] if strength != 1 else []
        checked(method, [*assigned, *lines(rest[-1])], {"behaviour": behaviour})
        folder = lab.room_for(f"{short(name)}-{method}")
        words = ["obliterate", "--json", "-o", str(folder), "--method", method]
        words += ["--behaviour", behaviour, *extra]
        for each in assigned:
            words += ["--set", each]
        if gentle:
            words.append("--auto-regularize")
        return Order("obliterate", folder.name, name, (*words, "--", name), folder)

    def explain(name: str) -> str:
        return _plan(lab, name)

    method.change(explain, method, plan, **QUIET)
    page.load(explain, method, plan, **QUIET)
    result, pages = gr.HTML(render=False), gr.HTML(render=False)
    panel(
        lab,
        page,
        "obliterate",
        button="Obliterate",
        idle=IDLE,
        inputs=[model, method, behaviour, strength, gentle, *rare.inputs],
        order=order,
        outputs=[result, pages],
        result=_result,
    )
    result.render()
    pages.render()


def _plan(lab: Laboratory, name: str) -> str:
    """Return what the method does; the operator is added once it was worked out."""
    facts = lab.reader.facts()
    return render(
        "plan", method=method_named(name), explained=None if facts is None else facts.methods[name]
    )


def _result(view: View) -> tuple[str, str]:
    """Return the summary of the report and the report itself, both from the folder."""
    folder = view.job.order.output
    records = folder / RECORDS
    record = read_json(records / "report.json")
    whole = (records / "report.html").read_text(encoding="utf-8")
    return report(Path(folder.name), record), framed(whole, f"Report of {folder.name}")
