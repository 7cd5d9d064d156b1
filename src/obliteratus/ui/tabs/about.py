"""About: what the instrument does, with what, on whose shoulders, and what it cannot say."""

from typing import Any

import gradio as gr

from obliteratus import __version__
from obliteratus.ui.drawing import render
from obliteratus.ui.fields import QUIET
from obliteratus.ui.laboratory import Laboratory


def build(lab: Laboratory, page: gr.Blocks) -> None:
    """Build the tab; methods and analyses are filled in once they have been read."""
    shown = gr.HTML(_text(lab), elem_id="about-text")
    page.load(lambda: _text(lab), None, shown, **QUIET)
    again = gr.Timer(2.0, active=True)

    def refresh() -> tuple[Any, Any]:
        if lab.reader.facts() is None:
            return gr.skip(), gr.skip()
        return _text(lab), gr.Timer(active=False)

    again.tick(refresh, None, [shown, again], **QUIET)


def _text(lab: Laboratory) -> str:
    return render("about", version=__version__, facts=lab.reader.facts())
