"""A/B Compare: one prompt, the original's and the edited model's answer token by token."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from obliteratus.errors import ObliteratusError
from obliteratus.events import Event, Note, Progress
from obliteratus.measure.beside import ANSWERS, Token
from obliteratus.ui import beside
from obliteratus.ui.desk import Desk, desk_state, given, paced, steering_choices
from obliteratus.ui.drawing import alert, render
from obliteratus.ui.fields import QUIET
from obliteratus.ui.laboratory import Laboratory

LEAD = (
    "Both models answer one prompt, and both are asked at every token of both answers: how far "
    "apart they are, and how near to a refusal. Nothing that is said here is kept."
)
LONGEST = 512  # tokens of an answer
AT_ONCE = 32  # visitors whose answers are being written
NOTHING_TO_COMPARE = "choose the edited model, or directions to steer the original along"


@dataclass(frozen=True)
class _Fields:
    """What is compared."""

    original: gr.Dropdown
    edited: gr.Dropdown
    strength: gr.Slider


def build(lab: Laboratory) -> None:
    """Build the tab."""
    gr.HTML(render("lead", text=LEAD))
    fields = _fields(lab)
    prompt = gr.Textbox(
        label="Prompt", placeholder="Ask both", lines=2, max_lines=10, elem_id="compare-prompt"
    )
    with gr.Row(elem_classes="actions"):
        ask = gr.Button("Compare", variant="primary", elem_id="compare-ask", scale=0, min_width=140)
        stop = gr.Button("Stop", interactive=False, elem_id="compare-stop", scale=0, min_width=110)
        numbers = gr.Checkbox(label="Write KL under every token", elem_id="compare-numbers")
    status = gr.HTML(elem_id="compare-status")
    panes = _panes()
    gr.HTML(beside.key(), elem_id="compare-key")
    with gr.Accordion("Every value, as a table", open=False, elem_id="compare-values"):
        table = gr.HTML()
    with gr.Accordion("System prompt and length", open=False):
        system = gr.Textbox(label="System prompt", placeholder="none", elem_id="compare-system")
        longest = gr.Slider(
            1, LONGEST, value=64, step=1, label="Longest answer", elem_id="compare-longest",
            info="In tokens. Both take the likeliest token each time.",
        )  # fmt: skip
    desk, said = desk_state(), gr.State([])
    original, edited, strength = fields.original, fields.edited, fields.strength

    def compare(desk: Desk, *values: Any) -> Generator[tuple[Any, ...]]:
        yield from _compare(lab, desk, _Asked(*values))

    gr.on(
        [ask.click, prompt.submit],
        compare,
        [desk, prompt, original, edited, strength, system, longest, numbers],
        [said, status, *panes, table, ask, stop],
        show_progress="hidden",
        concurrency_limit=AT_ONCE,
    )
    stop.click(Desk.stop, desk, None, **QUIET)
    numbers.change(_drawn, [said, numbers], panes, **QUIET)
    strength.change(_steer, [desk, edited, strength], status, **QUIET)

    def choose(value: str | None) -> tuple[Any, Any]:
        return _chosen(lab, value)

    edited.change(choose, edited, [original, strength], **QUIET)
    original.focus(lambda: gr.Dropdown(lab.models()), None, original, **QUIET)
    edited.focus(lambda: gr.Dropdown(_edits(lab)), None, edited, **QUIET)


def _fields(lab: Laboratory) -> _Fields:
    with gr.Row(elem_classes="fields"):
        return _Fields(
            original=gr.Dropdown(
                lab.models(), value=None, label="Original", allow_custom_value=True, scale=2,
                info="A name, a Hub id or a path. That of a saved edit is filled in.",
                elem_id="compare-original",
            ),
            edited=gr.Dropdown(
                _edits(lab), value=None, label="Edited", allow_custom_value=True, scale=2,
                info="A saved model, or the original steered along a directions.safetensors.",
                elem_id="compare-edited",
            ),
            strength=gr.Slider(
                -1, 2, value=1, step=0.05, label="Strength", scale=2, interactive=False,
                info="Of steering: 1 removes. A saved edit has its own.",
                elem_id="compare-strength",
            ),
        )  # fmt: skip


def _panes() -> list[gr.HTML]:
    """Return the place of each answer's text and trace; they stack where there is no room."""
    found: list[gr.HTML] = []
    with gr.Row(elem_classes="sides"):
        for whose in ANSWERS:
            with gr.Column(min_width=320):
                gr.HTML(f"<h3>{whose.capitalize()}</h3>")
                found.append(gr.HTML(elem_id=f"compare-{whose}-answer"))
                found.append(gr.HTML(elem_id=f"compare-{whose}-trace"))
    return found


@dataclass(frozen=True)
class _Asked:
    """The values of the fields, in their order."""

    prompt: str | None
    original: str | None
    edited: str | None
    strength: float
    system: str | None
    longest: float
    numbers: bool


def _compare(lab: Laboratory, desk: Desk, asked: _Asked) -> Generator[tuple[Any, ...]]:
    """Ask both; what was said before stays until there is something new, or an error."""
    numbers = asked.numbers
    busy, idle = _buttons(is_busy=True), _buttons(is_busy=False)
    same = tuple(gr.skip() for _ in range(2 * len(ANSWERS)))
    tokens: list[Token] = []
    desk.begin()
    try:
        text = given(asked.prompt, "write a prompt for both")
        name = given(asked.original, "choose the original, or type the name of one")
        other = given(asked.edited, NOTHING_TO_COMPARE)
        yield (gr.skip(), _said(f"loading {name} and {Path(other).name}"), *same, "", *busy)
        talk = desk.opened(lab, name, other)
        if talk.opened.strength is not None:
            talk.strength = asked.strength
        notes = list(talk.opened.notes)
        yield ([], _said(talk.opened.summary, notes), *_drawn([], numbers), "", *busy)
        if not desk.is_stopped:
            answers = talk.compare(
                text, system=(asked.system or "").strip() or None, max_new_tokens=int(asked.longest)
            )
            for heard in paced(answers):
                tokens += [each for each in heard if isinstance(each, Token)]
                line = _heard(talk.opened.summary, notes, heard)
                yield (gr.skip(), line, *_drawn(tokens, numbers), gr.skip(), *busy)
    except ObliteratusError as error:
        drawn = (*_drawn(tokens, numbers), beside.values(tokens)) if tokens else (*same, gr.skip())
        yield (tokens or gr.skip(), alert(str(error)), *drawn, *idle)
        return
    yield (tokens, gr.skip(), *_drawn(tokens, numbers), beside.values(tokens), *idle)


def _drawn(tokens: Sequence[Token], numbers: bool) -> tuple[str, ...]:
    """Return the text and the trace of each answer."""
    found: list[str] = []
    for whose in ANSWERS:
        own = [token for token in tokens if token.answer == whose]
        found += [beside.answer(own, numbers=numbers), beside.trace(own, tokens)]
    return tuple(found)


def _heard(summary: str, notes: list[str], heard: Sequence[Event | Token]) -> str:
    """Return the line that says what is going on; a Note stays in it."""
    notes += [each.text for each in heard if isinstance(each, Note)]
    last = heard[-1]
    if isinstance(last, Progress):
        return _said(f"{last.task}: {last.done} of {last.total} {last.unit}", notes)
    return _said(summary, notes)


def _chosen(lab: Laboratory, value: str | None) -> tuple[Any, Any]:
    """Return the original of the edit that was chosen, and whether a strength is of use."""
    place = Path(value or "")
    is_steered = place.suffix == ".safetensors"
    of = {
        str(each.directions if is_steered else each.folder): each.original for each in lab.saved()
    }
    found = of.get(str(place))
    return gr.skip() if found is None else found, gr.Slider(interactive=is_steered)


def _steer(desk: Desk, edited: str | None, strength: float) -> Any:
    """Turn the strength of what is being compared, from its next token on."""
    if desk.talk is None or desk.talk.opened.strength is None or not edited:
        return gr.skip()
    try:
        desk.talk.strength = strength
    except ObliteratusError as error:
        return alert(str(error))
    return gr.skip()


def _edits(lab: Laboratory) -> list[tuple[str, str]]:
    saved = [(each.folder.name, str(each.folder)) for each in lab.saved()]
    return [*saved, *((f"steered {name}", file) for name, file in steering_choices(lab))]


def _said(text: str, notes: Sequence[str] = ()) -> str:
    return render("said", text=text, notes=notes)


def _buttons(*, is_busy: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not is_busy), gr.Button(interactive=is_busy)
