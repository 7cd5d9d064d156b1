"""Benchmark: methods beside each other on the same model and prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from obliteratus.amounts import duration
from obliteratus.errors import UsageError
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.words import ratio, shown
from obliteratus.store import read_json
from obliteratus.ui.drawing import picture, render
from obliteratus.ui.fields import checked, lines, method_names, short
from obliteratus.ui.jobs import Order, View
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.panel import panel

LEAD = (
    "<p class='lead'>Edits each model by each method, in memory, and measures all of them on the "
    "same test prompts. What nobody beats is on the front; ties are said to be ties.</p>"
)
IDLE = "No benchmark is selected. Each method takes about as long as a run."
FIRST = ["basic", "advanced"]
TABLE_FILE = "benchmark.json"
PICTURES = {
    ("pareto-", ".svg"): "what each edit leaves of refusal, and what it changes elsewhere.",
    ("layers-", "-1.svg"): "do layers share a direction? Cosines between those of all of them.",
    ("layers-", "-2.svg"): "how the direction turns from layer to layer.",
}
"""What a benchmark draws, in this order: how a file's name begins and ends, around the model."""


def build(lab: Laboratory, page: gr.Blocks) -> None:
    """Build the tab."""
    gr.HTML(LEAD)
    known = lab.known_models()
    with gr.Row(elem_classes="fields"):
        models = gr.Dropdown(
            known, value=known[:1], multiselect=True, allow_custom_value=True, label="Models",
            elem_id="benchmark-models",
        )  # fmt: skip
        methods = gr.Dropdown(
            method_names(), value=FIRST, multiselect=True, label="Methods",
            elem_id="benchmark-methods",
        )  # fmt: skip
        prompts = gr.Slider(
            0, 128, value=32, step=8, label="Test prompts of each class", info="0 takes all.",
            elem_id="benchmark-prompts",
        )  # fmt: skip
    assignments = gr.Textbox(
        label="Settings of all", placeholder="verify.max_new_tokens=32", lines=1,
        elem_id="benchmark-set", info="key=value, one in each line.",
    )  # fmt: skip

    def order(models: Sequence[str], methods: Sequence[str], prompts: float, said: str) -> Order:
        if not models or not methods:
            raise UsageError("choose at least one model and one method.")
        if clash := [each for each in models if "," in each]:
            raise UsageError(f"a comma parts models here, and {clash[0]} has one in its name.")
        for method in methods:
            checked(method, lines(said))
        folder = lab.room_for(f"benchmark-{short(models[0])}")
        words = ["benchmark", "--json", "-o", str(folder), f"--models={','.join(models)}"]
        words += [f"--methods={','.join(methods)}", "--prompts", str(int(prompts))]
        for line in lines(said):
            words += ["--set", line]
        title = f"{', '.join(map(short, models))}: {', '.join(methods)}"
        return Order("benchmark", title, models[0], tuple(words), folder)

    table, pictures = gr.HTML(render=False), gr.HTML(render=False)
    with gr.Row(render=False) as downloads:
        file = gr.File(label="The table as JSON", visible=False, elem_id="benchmark-file")
    panel(
        lab, page, "benchmark",
        button="Run benchmark",
        idle=IDLE,
        inputs=[models, methods, prompts, assignments],
        order=order,
        outputs=[table, pictures, file],
        result=_result,
    )  # fmt: skip
    table.render()
    pictures.render()
    downloads.render()


def _result(view: View) -> tuple[str, str, Any]:
    folder = view.job.order.output
    rows: Sequence[Mapping[str, Any]] = read_json(folder / TABLE_FILE)
    drawings = "".join(
        picture(file.read_text(encoding="utf-8"), f"{file.name[len(begin) : -len(end)]}: {caption}")
        for (begin, end), caption in PICTURES.items()
        for file in sorted(folder.glob(f"{begin}*{end}"))
    )
    return (
        render("benchmark", rows=[_row(row) for row in rows]),
        f"<div class='pictures'>{drawings}</div>",
        gr.File(str(folder / TABLE_FILE), visible=True),
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: Estimate.from_json(each) for name, each in row["estimates"].items()}
    perplexity = found.get("perplexity_heldout")
    return {
        "model": Path(row["model"]).name,
        "method": row["method"],
        "refused": shown(found.get("refusal_harmful"), "share"),
        "divergence": shown(found.get("kl_first"), "nats"),
        "perplexity": "–" if perplexity is None else ratio(perplexity),
        "took": duration(row["seconds"]),
        "beaten_by": row["beaten_by"],
    }
