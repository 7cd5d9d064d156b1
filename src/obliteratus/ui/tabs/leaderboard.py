"""Leaderboard: verified edits of one model, compared only where that is fair."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from obliteratus.community.book import opened_book
from obliteratus.community.leaderboard import Board, Row, leaderboard
from obliteratus.community.received import Received
from obliteratus.errors import ObliteratusError
from obliteratus.statistics.words import ratio, shown
from obliteratus.ui.drawing import alert, picture, render
from obliteratus.ui.laboratory import Laboratory

LEAD = (
    "<p class='lead'>The verified edits that this machine has recorded. Only rows with the same "
    "prompts, numbers, judge and lengths share a board; two whose intervals meet are tied.</p>"
)
ALL = "all"


def build(lab: Laboratory, tab: gr.Tab) -> None:
    """Build what is on ``tab``; it is read anew whenever that is chosen."""
    del lab  # the book of runs is the machine's, not the workspace's
    gr.HTML(LEAD)
    with gr.Row(elem_classes="fields"):
        model = gr.Textbox(label="Model", placeholder="part of its name", elem_id="board-model")
        device = gr.Textbox(label="Device", placeholder="cpu, cuda, H200", elem_id="board-device")
        dtype = gr.Dropdown(
            [ALL, "float32", "bfloat16", "float16"], value=ALL, label="Computed in",
            filterable=False, elem_id="board-dtype",
        )  # fmt: skip
        community = gr.Checkbox(
            label="Contributed runs as well", elem_id="board-community",
            info="As the community data set holds them; nobody has verified them here.",
        )  # fmt: skip
        show = gr.Button("Show", variant="primary", elem_id="board-show", scale=0, min_width=120)
    boards = gr.HTML(elem_id="boards")
    gr.on(
        [show.click, tab.select, model.submit, dtype.change],
        _boards, [model, device, dtype, community], boards, show_progress="hidden",
    )  # fmt: skip


def _boards(model: str, device: str, dtype: str, community: bool) -> str:
    try:
        with opened_book() as book:
            runs = book.runs()
        received = _received() if community else ()
    except ObliteratusError as error:
        return alert(str(error))
    found = leaderboard(
        runs,
        received,
        model=model.strip() or None,
        device=device.strip() or None,
        dtype=None if dtype == ALL else dtype,
    )
    return render("boards", boards=[_board(board) for board in found])


def _received() -> Sequence[Received]:
    """Return what `community pull` gives; reading it needs the whole program."""
    from obliteratus.community.consent import consent
    from obliteratus.community.pull import pulled

    return pulled(consent().data_set).rows


def _standing(row: Row, names: Mapping[str, str]) -> str:
    if row.rank is None:
        return "not ranked"
    beaten = ", ".join(names[each] for each in row.rank.beaten_by)
    tied = ", ".join(names[each] for each in row.rank.tied_with)
    place = f"beaten by {beaten}" if beaten else "front"
    return f"{place}; tied with {tied}" if tied else place


def _board(board: Board) -> dict[str, Any]:
    from obliteratus.community.board_picture import board_picture
    from obliteratus.pictures.drawn import drawn
    from obliteratus.pictures.style import as_svg

    names = {row.id: row.label for row in board.rows}
    rows = [
        {
            "id": row.id[:8],
            "method": row.method or "–",
            "refused": shown(row.refusal, "share"),
            "divergence": shown(row.divergence, "nats"),
            "perplexity": "–" if row.perplexity is None else ratio(row.perplexity),
            "on": f"{row.device}, {row.dtype}",
            "is_received": row.is_received,
            "when": time.strftime("%Y-%m-%d", time.localtime(row.started)),
            "standing": _standing(row, names),
        }
        for row in board.rows
    ]
    svg = ""
    if sum(row.rank is not None for row in board.rows) > 1:
        drawing = board_picture(board)
        svg = picture(as_svg(drawn(drawing)), drawing.caption)
    return {"title": board.title, "protocol": board.protocol, "rows": rows, "svg": svg}
