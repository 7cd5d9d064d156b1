"""A board as a picture, for a file and for a page."""

from plotly.graph_objects import Figure

from obliteratus.community.leaderboard import Board
from obliteratus.pictures.front import front_picture
from obliteratus.pictures.interactive import interactive
from obliteratus.pictures.spec import Picture
from obliteratus.statistics.front import Contender, ranks


def board_picture(board: Board) -> Picture:
    """Return refusal against divergence with intervals; the front has a colour of its own.

    Rows that are not ranked are not drawn.
    """
    contenders = [
        Contender(row.label, row.refusal, row.divergence)
        for row in board.rows
        if row.rank is not None
    ]
    return front_picture(board.title, contenders, ranks(contenders))


def board_figure(board: Board) -> Figure:
    """Return the same, to zoom into and to read values from."""
    return interactive(board_picture(board))
