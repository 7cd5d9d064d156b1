"""Does a model think before it answers? Found out from what its chat template writes.

A template shows it in three ways. It reads a variable that turns thoughts on and off (Qwen3 has
``enable_thinking``, Granite and DeepSeek-V3.1 ``thinking``). Its generation prompt opens a thought
(R1, QwQ). Or it only knows the marker that ends one, because it strips the thoughts of earlier
turns, and the model opens them itself. All three are looked for in the template's literals and by
rendering it, never in prose: a template that says "think step by step" has no thoughts.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Environment
from jinja2.exceptions import TemplateError

Render = Callable[[str | None, Mapping[str, Any]], str]
"""Renders one turn of the user, :data:`QUESTION`, with the variables given: behind it the
generation prompt, or the answer that is given instead."""

QUESTION, ANSWER = "What is the question?", "This is the answer."


@dataclass(frozen=True)
class Markers:
    """What stands around a thought.

    An empty thought is ``opening``, ``between``, ``closing`` and ``behind``. ``ends`` is what may
    come between the thought and ``closing`` and belongs to neither.
    """

    opening: str
    closing: str
    between: str = ""
    behind: str = ""
    ends: str = ""


MARKERS: tuple[Markers, ...] = (
    Markers("<think>", "</think>", "\n\n", "\n\n"),
    Markers("<thinking>", "</thinking>", "\n\n", "\n\n"),
    Markers("<thought>", "</thought>", "\n\n", "\n\n"),
    Markers("[THINK]", "[/THINK]"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("<longcat_think>", "</longcat_think>"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("◁think▷", "◁/think▷"),
    Markers("<|channel>thought\n", "<channel|>"),
    Markers(
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        between="<|end|><|start|>assistant",
        ends="<|end|>",
    ),
    Markers("Here is my thought process:", "Here is my response:", "\n\n", "\n\n"),
)
"""Those of published models. The final channel of harmony (gpt-oss) ends all that came before."""


@dataclass(frozen=True)
class Switch:
    """A variable of chat templates that turns thoughts on and off; ``on`` None leaves it unset."""

    name: str
    on: bool | None
    off: bool | int

    def options(self, *, thinks: bool) -> dict[str, Any]:
        """Return the variable as a template takes it."""
        value = self.on if thinks else self.off
        return {} if value is None else {self.name: value}


SWITCHES: tuple[Switch, ...] = (
    Switch("enable_thinking", on=True, off=False),
    Switch("thinking", on=True, off=False),
    Switch("reasoning", on=True, off=False),
    Switch("thinking_budget", on=None, off=0),
)
"""Those of published templates. An effort (``reasoning_effort``) turns nothing off."""


@dataclass(frozen=True)
class Reasoning:
    """How a model thinks, and how it is kept from it.

    ``markers`` None: there is a switch, and none of :data:`MARKERS`. ``prompt_opens`` says that
    the generation prompt opens a thought when thoughts are on; ``suffix`` closes what is open
    behind it when they are off, or writes an empty thought.
    """

    markers: Markers | None
    switch: Switch | None
    prompt_opens: bool
    suffix: str

    def options(self, *, thinks: bool) -> dict[str, Any]:
        """Return the variables that the template is rendered with."""
        return {} if self.switch is None else self.switch.options(thinks=thinks)

    @property
    def around(self) -> str:
        """The markers as they are printed."""
        if self.markers is None:
            return "markers unknown"
        return f"{self.markers.opening.strip()} … {self.markers.closing}"

    @property
    def how_skipped(self) -> str:
        """What keeps the model from thinking."""
        parts = [] if self.switch is None else [f"{self.switch.name}={json.dumps(self.switch.off)}"]
        parts += ["an empty thought behind the generation prompt"] if self.suffix else []
        return " and ".join(parts) or "by the generation prompt itself"


def detect(template: str, render: Render) -> Reasoning | None:
    """Return how the model of ``template`` thinks, or None where the template shows no thoughts.

    The empty thought is in the form in which the template itself writes it in front of an answer
    without one, where it does, and else in that of the markers.

    Raises:
        jinja2.TemplateError: the template cannot be parsed, or fails on a turn of the user.
    """
    written, names = _literals(template)
    known = [each for each in MARKERS if each.closing in written]
    switch = next(
        (
            each
            for each in SWITCHES
            if each.name in names
            and render(None, each.options(thinks=True)) != render(None, each.options(thinks=False))
        ),
        None,
    )
    if not known:
        return None if switch is None else Reasoning(None, switch, prompt_opens=False, suffix="")
    on, off = ({} if switch is None else switch.options(thinks=thinks) for thinks in (True, False))
    thinking, silent, turn = render(None, on), render(None, off), _answered(render, off)
    shown = thinking + silent + turn
    markers = min(known, key=lambda each: each.opening not in shown and each.closing not in shown)
    return Reasoning(
        markers=markers,
        switch=switch,
        prompt_opens=_state(thinking, markers) == "open",
        suffix=_suffix(silent, turn, markers, has_switch=switch is not None),
    )


def _literals(template: str) -> tuple[str, set[str]]:
    """Return the text that a template can write, and all names in it; comments are left out."""
    tokens = [(kind, value) for _, kind, value in Environment().lex(template)]
    written = "\n".join(value for kind, value in tokens if kind in {"data", "string"})
    return written, {value for kind, value in tokens if kind == "name"}


def _answered(render: Render, options: Mapping[str, Any]) -> str:
    """Return a turn of both, or nothing where the template takes none without more about it."""
    try:
        return render(ANSWER, options)
    except TemplateError:
        return ""


def _state(prompt: str, markers: Markers) -> Literal["open", "closed", "none"]:
    """Say what a generation prompt leaves behind the user's text."""
    tail = prompt.rpartition(QUESTION)[2]
    opened, closed = tail.rfind(markers.opening), tail.rfind(markers.closing)
    if opened > closed:
        return "open"
    return "none" if closed < 0 else "closed"


def _suffix(prompt: str, turn: str, markers: Markers, *, has_switch: bool) -> str:
    """Return what ``prompt`` needs to be followed by the answer's first token."""
    state = _state(prompt, markers)
    if state == "closed" or (state == "none" and has_switch):
        return ""
    own, is_there, _ = turn.removeprefix(prompt).partition(ANSWER)
    if is_there and turn.startswith(prompt) and markers.closing in own:
        return own
    if state == "none":
        return f"{markers.opening}{markers.between}{markers.closing}{markers.behind}"
    inside = prompt.rpartition(markers.opening)[2]
    left = markers.between.removeprefix(inside) if markers.between.startswith(inside) else ""
    return f"{left}{markers.closing}{markers.behind}"
