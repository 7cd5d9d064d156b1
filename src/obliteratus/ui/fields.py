"""Fields that several tabs have: model, method, behaviour, and what is rarely changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from obliteratus.errors import UsageError
from obliteratus.pipeline.methods import methods, settings_for
from obliteratus.ui.laboratory import Laboratory

DTYPES = ("as stored", "float32", "bfloat16", "float16")
PROMPT_FILES = [".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet"]
BEHAVIOUR = "refusal"
QUIET: dict[str, Any] = {"show_progress": "hidden", "queue": False}
"""How an event is answered that takes no time: beside the queue, and nothing spins."""


@dataclass(frozen=True)
class Rare:
    """The folded fields, in the order in which their values arrive."""

    system: gr.Textbox
    seed: gr.Number
    dtype: gr.Dropdown
    harmful: gr.File
    harmless: gr.File
    assignments: gr.Textbox

    @property
    def inputs(self) -> list[Any]:
        """All of them."""
        return [
            self.system, self.seed, self.dtype, self.harmful, self.harmless, self.assignments
        ]  # fmt: skip


def model_field(lab: Laboratory, page: gr.Blocks, *, name: str) -> gr.Dropdown:
    """Return a choice of known and saved models that also takes any Hub id or path."""
    known = lab.known_models()
    found = gr.Dropdown(
        known,
        value=known[0] if known else None,
        label="Model",
        allow_custom_value=True,
        elem_id=name,
    )

    def refresh() -> Any:
        saved = [(each.folder.name, str(each.folder)) for each in lab.saved()]
        return gr.Dropdown([*((each, each) for each in known), *saved])

    page.load(refresh, None, found, **QUIET)
    return found


def method_names() -> list[str]:
    """Return the names of the methods, the ones to begin with first."""
    first = ["advanced", "basic", "aggressive", "tuned", "informed"]
    names = [each.name for each in methods()]
    return [name for name in first if name in names] + [n for n in names if n not in first]


def behaviour_field(lab: Laboratory, page: gr.Blocks, *, name: str) -> gr.Dropdown:
    """Return a choice of the behaviours; they are known a few seconds after the server's start."""
    found = gr.Dropdown([BEHAVIOUR], value=BEHAVIOUR, label="Behaviour", elem_id=name,
                        allow_custom_value=True)  # fmt: skip

    def refresh() -> Any:
        facts = lab.reader.facts()
        return gr.skip() if facts is None else gr.Dropdown(list(facts.behaviours))

    page.load(refresh, None, found, **QUIET)
    found.focus(refresh, None, found, **QUIET)
    return found


def rare_fields(*, name: str) -> Rare:
    """Return the fields that most runs leave as they are, folded."""
    with gr.Accordion("More settings", open=False, elem_id=f"{name}-more"):
        with gr.Row():
            system = gr.Textbox(label="System prompt", placeholder="none", lines=1, scale=3)
            seed = gr.Number(label="Seed", value=0, precision=0, minimum=0, scale=1, min_width=90)
            dtype = gr.Dropdown(list(DTYPES), value=DTYPES[0], label="Computes in", scale=1,
                                min_width=120, filterable=False)  # fmt: skip
        with gr.Row():
            harmful = gr.File(label="Your harmful prompts", file_types=PROMPT_FILES, height=90)
            harmless = gr.File(label="Your harmless prompts", file_types=PROMPT_FILES, height=90)
        assignments = gr.Textbox(
            label="Other settings",
            info="key=value, one in each line: what --set takes on the command line.",
            placeholder="edit.strength=0.8\nverify.max_new_tokens=48",
            lines=2,
            elem_id=f"{name}-set",
        )
    return Rare(system, seed, dtype, harmful, harmless, assignments)


def lines(text: str | None) -> list[str]:
    """Return the lines of ``text`` that are not empty."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def rare_words(
    system: str | None,
    seed: float | None,
    dtype: str,
    harmful: str | None,
    harmless: str | None,
    assignments: str | None,
) -> list[str]:
    """Return the flags that the folded fields stand for.

    Raises:
        UsageError: prompts of one class are given and of the other not.
    """
    if (harmful is None) != (harmless is None):
        raise UsageError("give prompts of both classes, harmful and harmless, or of neither.")
    words: list[str] = []
    if system:
        words += ["--system", system]
    if seed:
        words += ["--seed", str(int(seed))]
    if dtype and dtype != DTYPES[0]:
        words += ["--dtype", dtype]
    if harmful and harmless:
        words += ["--harmful", harmful, "--harmless", harmless]
    for line in lines(assignments):
        words += ["--set", line]
    return words


def named(model: str | None) -> str:
    """Return the model's name.

    Raises:
        UsageError: there is none.
    """
    if not (model or "").strip():
        raise UsageError("which model? Choose one, or type a Hub id or a path.")
    return str(model).strip()


def checked(method: str, assignments: Sequence[str], base: Mapping[str, Any] | None = None) -> None:
    """Check the settings before anything is queued.

    Raises:
        UsageError: a key is unknown (the nearest one is named), or a value is out of range.
    """
    settings_for(method, assignments, base)


def short(model: str) -> str:
    """Return a model's name without its folders."""
    return Path(model).name.removesuffix(".gguf")
