"""Atlas: the fifteen analyses of a model, without editing it."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from obliteratus.errors import UsageError
from obliteratus.ui.drawing import framed
from obliteratus.ui.fields import (
    QUIET,
    behaviour_field,
    checked,
    lines,
    model_field,
    named,
    rare_fields,
    rare_words,
    short,
)
from obliteratus.ui.jobs import Order, View
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.panel import panel

LEAD = (
    "<p class='lead'>Asks how a model refuses and changes nothing: where the direction is, what "
    "writes it, what reads it, how robust it is. Each answer has an interval and a null.</p>"
)
IDLE = "No atlas is selected. All analyses of a model of 135 M parameters take some 16 minutes."
ATLAS_FILE = "atlas.html"
FIRST = ["refusal_logit_lens", "cross_layer_alignment", "linear_probe_classifiers"]


def build(lab: Laboratory, page: gr.Blocks) -> None:
    """Build the tab."""
    gr.HTML(LEAD)
    with gr.Row(elem_classes="fields"):
        model = model_field(lab, page, name="analyze-model")
        behaviour = behaviour_field(lab, page, name="analyze-behaviour")
    modules = gr.Dropdown(
        FIRST, value=FIRST, multiselect=True, label="Analyses", elem_id="analyze-modules",
        info="None takes all of them.", allow_custom_value=True,
    )  # fmt: skip
    rare = rare_fields(name="analyze")

    def refresh() -> Any:
        facts = lab.reader.facts()
        if facts is None:
            return gr.skip()
        return gr.Dropdown([(each["title"], name) for name, each in facts.analyses.items()])

    page.load(refresh, None, modules, **QUIET)
    modules.focus(refresh, None, modules, **QUIET)

    def order(model: str | None, behaviour: str, modules: Sequence[str], *rest: Any) -> Order:
        name = named(model)
        if clash := [each for each in modules if "," in each]:
            raise UsageError(f"there is no analysis called {clash[0]}.")
        extra = rare_words(*rest)
        checked("advanced", lines(rest[-1]), {"behaviour": behaviour})
        folder = lab.room_for(f"atlas-{short(name)}")
        words = ["analyze", "--json", "-o", str(folder), "--behaviour", behaviour, *extra]
        if modules:
            words.append(f"--modules={','.join(modules)}")
        return Order("analyze", folder.name, name, (*words, "--", name), folder)

    atlas = gr.HTML(render=False, elem_id="analyze-page")
    panel(
        lab, page, "analyze",
        button="Analyze",
        idle=IDLE,
        inputs=[model, behaviour, modules, *rare.inputs],
        order=order,
        outputs=[atlas],
        result=_result,
    )  # fmt: skip
    atlas.render()


def _result(view: View) -> tuple[str]:
    folder = view.job.order.output
    page = (folder / ATLAS_FILE).read_text(encoding="utf-8")
    return (framed(page, f"Atlas of {view.job.order.model}", runs_scripts=True),)
