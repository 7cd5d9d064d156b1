"""Export: what a run made in the formats of other programs, and the card that goes with it."""

from pathlib import Path
from typing import Any

import gradio as gr

from obliteratus.amounts import size
from obliteratus.errors import UsageError
from obliteratus.ui.drawing import render
from obliteratus.ui.fields import QUIET
from obliteratus.ui.jobs import Order, View
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.panel import panel
from obliteratus.ui.publish import publishing

LEAD = (
    "<p class='lead'>A saved model is an ordinary folder already. Here it is written as an "
    "adapter, a control vector, a GGUF file or one archive.</p>"
)
IDLE = "No export is selected."
FORMATS = {
    "zip": ("Archive of the folder (zip)", ".zip"),
    "lora": ("Adapter for the original (LoRA, peft)", ""),
    "control-vector": ("Control vector for llama.cpp (GGUF)", ".gguf"),
    "gguf": ("Edited model for llama.cpp (GGUF)", ".gguf"),
}
LARGEST_OFFERED = 500_000_000  # bytes: what is larger is better taken from the disk
CARD_FILE = "README.md"


def build(lab: Laboratory, page: gr.Blocks) -> None:
    """Build the tab."""
    gr.HTML(LEAD)
    with gr.Row(elem_classes="fields"):
        saved = gr.Dropdown(_saved(lab), label="Saved model", elem_id="export-model", scale=2)
        form = gr.Dropdown([(text, name) for name, (text, _) in FORMATS.items()], value="zip",
                           label="Format", elem_id="export-format")  # fmt: skip
        source = gr.Textbox(label="GGUF of the original", placeholder="path, where it is asked for",
                            elem_id="export-source", visible=False)  # fmt: skip
    with gr.Accordion("The model card", open=False):
        card = gr.Markdown("Choose a saved model.", elem_id="export-card")

    def order(folder: str | None, form: str, source: str) -> Order:
        if not folder:
            raise UsageError("which model? Choose a saved one; Obliterate writes them.")
        run = Path(folder)
        output = lab.room_for(f"{run.name}-{form}{FORMATS[form][1]}")
        words = ["export", "--json", "--to", form, f"--output={output}"]
        if form == "gguf" and source.strip():
            words.append(f"--source={source.strip()}")
        return Order("export", f"{run.name} as {form}", folder, (*words, "--", folder), output)

    form.change(_needs_source, form, source, **QUIET)
    saved.change(_card, saved, card, **QUIET)
    saved.focus(lambda: gr.Dropdown(_saved(lab)), None, saved, **QUIET)
    page.load(lambda: gr.Dropdown(_saved(lab)), None, saved, **QUIET)
    written, file = gr.HTML(render=False), gr.File(render=False, label="Download", visible=False)
    panel(
        lab, page, "export",
        button="Export",
        idle=IDLE,
        inputs=[saved, form, source],
        order=order,
        outputs=[written, file],
        result=_result,
    )  # fmt: skip
    written.render()
    file.render()
    publishing(lab, page, saved)


def _needs_source(form: str) -> gr.Textbox:
    return gr.Textbox(visible=form == "gguf")


def _saved(lab: Laboratory) -> list[tuple[str, str]]:
    return [
        (f"{each.folder.name}: {Path(each.original).name}, {each.method}", str(each.folder))
        for each in lab.saved()
    ]


def _card(folder: str | None) -> str:
    """Return the card without its front matter, which is for machines."""
    file = Path(folder or "") / CARD_FILE
    if not folder or not file.is_file():
        return "This folder has no card."
    text = file.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text


def _result(view: View) -> tuple[str, Any]:
    output = view.job.order.output
    files = [output] if output.is_file() else [each for each in output.rglob("*") if each.is_file()]
    n_bytes = sum(each.stat().st_size for each in files)
    text = render("written", path=str(output), amount=size(n_bytes), count=len(files))
    is_offered = output.is_file() and n_bytes <= LARGEST_OFFERED
    return text, gr.File(str(output) if is_offered else None, visible=is_offered)
