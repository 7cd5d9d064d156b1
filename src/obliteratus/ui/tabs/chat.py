"""Chat: talk to any model, as it is or steered along directions while it runs."""

import html
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from obliteratus.errors import ObliteratusError, UsageError
from obliteratus.ui.desk import (
    Desk,
    desk_state,
    given,
    paced,
    steering_choices,
)
from obliteratus.ui.drawing import alert, render
from obliteratus.ui.fields import QUIET
from obliteratus.ui.laboratory import Laboratory

LEAD = (
    "Talk to a saved model, to one of the catalogue, or to one that is steered while it runs: its "
    "weights stay as they are. Nothing that is said here is kept."
)
LONGEST = 4096  # tokens of an answer
AT_ONCE = 32  # visitors whose answers are being written
WAITING = "…"
WEAKEST, STRONGEST = -1, 2  # of the slider, until a strength beyond them is chosen elsewhere


@dataclass(frozen=True)
class Ports:
    """The fields that other tabs set: what to talk to, what to steer along, and how strongly."""

    model: gr.Dropdown
    directions: gr.Dropdown
    strength: gr.Slider


def reaching(strength: float) -> gr.Slider:
    """Return what sets the slider to ``strength``, and widens it where it ends before that."""
    return gr.Slider(min(WEAKEST, strength), max(STRONGEST, strength), value=strength)


def build(lab: Laboratory) -> Ports:
    """Build the tab."""
    gr.HTML(render("lead", text=LEAD))
    ports = _ports(lab)
    talk = gr.Chatbot(
        label="Conversation", show_label=False, height=400, elem_id="chat-talk",
        render_markdown=False, feedback_options=None, buttons=[], layout="bubble",
        placeholder="Nothing has been said yet.",
    )  # fmt: skip
    status = gr.HTML(elem_id="chat-status")
    text = gr.Textbox(
        label="Message", placeholder="Ask something", lines=1, max_lines=8, elem_id="chat-text"
    )
    with gr.Row(elem_classes="actions"):
        ask = gr.Button("Send", variant="primary", elem_id="chat-send", scale=0, min_width=120)
        stop = gr.Button("Stop", interactive=False, elem_id="chat-stop", scale=0, min_width=110)
        clear = gr.Button("Clear", elem_id="chat-clear", scale=0, min_width=110)
    sampling = _sampling()
    desk = desk_state()

    def send(desk: Desk, text: str | None, *values: Any) -> Generator[tuple[Any, ...]]:
        yield from _send(lab, desk, text, _Asked(*values))

    gr.on(
        [ask.click, text.submit],
        send,
        [desk, text, ports.model, ports.directions, ports.strength, *sampling],
        [talk, status, text, ask, stop],
        show_progress="hidden",
        concurrency_limit=AT_ONCE,
    )
    stop.click(Desk.stop, desk, None, **QUIET)
    gr.on([clear.click, talk.clear], _clear, desk, [talk, status], **QUIET)
    turned = [desk, ports.directions, ports.strength]
    ports.strength.change(_steer, turned, status, **QUIET)
    ports.model.focus(lambda: gr.Dropdown(lab.models()), None, ports.model, **QUIET)
    ports.directions.focus(
        lambda: gr.Dropdown(steering_choices(lab)), None, ports.directions, **QUIET
    )
    return ports


def _ports(lab: Laboratory) -> Ports:
    with gr.Row(elem_classes="fields"):
        return Ports(
            model=gr.Dropdown(
                lab.models(), value=None, label="Model", allow_custom_value=True, scale=2,
                info="A saved model, a name of the catalogue, a Hub id or a path.",
                elem_id="chat-model",
            ),
            directions=gr.Dropdown(
                steering_choices(lab), value=None, label="Steer", allow_custom_value=True, scale=2,
                info="Empty: the model as it is. Else a directions.safetensors of this model.",
                elem_id="chat-directions",
            ),
            strength=gr.Slider(
                WEAKEST, STRONGEST, value=1, step=0.05, label="Strength", scale=2,
                elem_id="chat-strength",
                info="0 as it is, 1 removes, 2 reflects, below 0 amplifies. Also while it answers.",
            ),
        )  # fmt: skip


def _sampling() -> list[Any]:
    """Return the fields of a request in the order in which :func:`_send` takes them."""
    with gr.Accordion("System prompt and sampling", open=False, elem_id="chat-more"):
        system = gr.Textbox(label="System prompt", placeholder="none", elem_id="chat-system")
        with gr.Row():
            return [
                system,
                gr.Slider(
                    0, 2, value=0, step=0.05, label="Temperature", elem_id="chat-temperature",
                    info="0 always takes the likeliest token.",
                ),
                gr.Slider(
                    0.05, 1, value=1, step=0.05, label="Top p", elem_id="chat-top-p",
                    info="Only the likeliest tokens with this probability together.",
                ),
                gr.Slider(
                    1, LONGEST, value=512, step=1, label="Longest answer", info="In tokens.",
                    elem_id="chat-longest",
                ),
                gr.Number(
                    label="Seed", precision=0, value=None, elem_id="chat-seed",
                    info="Empty: drawn anew each time.",
                ),
            ]  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """The values of the fields beside a message, in their order."""

    model: str | None
    directions: str | None
    strength: float
    system: str | None
    temperature: float
    top_p: float
    max_new_tokens: float
    seed: float | None


def _send(
    lab: Laboratory, desk: Desk, text: str | None, asked: _Asked
) -> Generator[tuple[Any, ...]]:
    """Answer ``text``; what could not be answered is put back into its field, with the reason."""
    busy, idle = _buttons(is_busy=True), _buttons(is_busy=False)
    if not (text or "").strip():
        yield (gr.skip(), "", gr.skip(), *idle)
        return
    turns = [*desk.turns, {"role": "user", "content": (text or "").strip()}]
    answer = ""
    page = desk.begin()
    try:
        name = given(asked.model, "choose a model, or type the name of one")
        yield (_shown(_with(turns, WAITING)), _said(f"loading {name}"), "", *busy)
        talk = desk.opened(lab, name, (asked.directions or "").strip() or None)
        if talk.opened.strength is not None:
            talk.strength = asked.strength
        if not desk.is_stopped:
            said = _said(talk.opened.summary, talk.opened.notes)
            yield (_shown(_with(turns, WAITING)), said, "", *busy)
            pieces = talk.answer(
                turns,
                system=(asked.system or "").strip() or None,
                temperature=asked.temperature,
                top_p=asked.top_p,
                max_new_tokens=int(asked.max_new_tokens),
                seed=None if asked.seed is None else int(asked.seed),
            )
            for heard in paced(pieces):
                answer += "".join(heard)
                yield (_shown(_with(turns, answer)), gr.skip(), gr.skip(), *busy)
    except ObliteratusError as error:
        yield (_shown(desk.turns), alert(str(error)), text, *idle)
        return
    if page == desk.page and not (desk.is_stopped and not answer):
        desk.turns = _with(turns, answer.strip())
        text = ""
    yield (_shown(desk.turns), gr.skip(), text if page == desk.page else gr.skip(), *idle)


def _clear(desk: Desk) -> tuple[list[Any], str]:
    desk.clear()
    return [], ""


def _steer(desk: Desk, directions: str | None, strength: float) -> Any:
    """Turn the strength of the model that is open, also while it answers."""
    if desk.talk is None or desk.talk.subject.directions is None or not directions:
        return gr.skip()
    try:
        desk.talk.strength = strength
    except UsageError as error:
        return alert(str(error))
    return gr.skip()


def _with(turns: list[dict[str, str]], answer: str) -> list[dict[str, str]]:
    return [*turns, {"role": "assistant", "content": answer}]


def _shown(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return ``turns`` for the chatbot, which takes what it is given as HTML, Markdown or not."""
    return [turn | {"content": html.escape(turn["content"], quote=False)} for turn in turns]


def _said(text: str, notes: tuple[str, ...] = ()) -> str:
    return render("said", text=text, notes=notes)


def _buttons(*, is_busy: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not is_busy), gr.Button(interactive=is_busy)
