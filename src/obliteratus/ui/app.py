"""The page: a head, and one tab for each thing that can be done."""

import gradio as gr

from obliteratus.ui.drawing import render
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.tabs import (
    about,
    atlas,
    benchmark,
    chat,
    compare,
    export,
    leaderboard,
    obliterate,
    sweep,
)

TITLE = "Obliteratus"


def page(lab: Laboratory) -> gr.Blocks:
    """Return the page of ``lab``; nothing is served yet."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as found:
        gr.HTML(render("header", workspace=str(lab.workspace)), elem_id="head")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("Obliterate", id="obliterate"):
                obliterate.build(lab, found)
            with gr.Tab("Benchmark", id="benchmark"):
                benchmark.build(lab, found)
            with gr.Tab("Chat", id="chat"):
                talking = chat.build(lab)
            with gr.Tab("A/B Compare", id="compare"):
                compare.build(lab)
            with gr.Tab("Strength Sweep", id="sweep"):
                sweep.build(lab, found, tabs, talking)
            with gr.Tab("Export", id="export"):
                export.build(lab, found)
            with gr.Tab("Leaderboard", id="leaderboard") as tab:
                leaderboard.build(lab, tab)
            with gr.Tab("Atlas", id="atlas"):
                atlas.build(lab, found)
            with gr.Tab("About", id="about"):
                about.build(lab, found)
    return found
