"""A picture drawn by plotly: the same data, to zoom into and to read values from."""

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from obliteratus.pictures.spec import Dots, Heat, Line, Mark, Panel, Picture, Points
from obliteratus.pictures.style import BAND, LIGHT

PANEL = 260  # pixels: the height of a panel
SIGNED = [(0.0, LIGHT["edited"]), (0.5, "#ffffff"), (1.0, LIGHT["refusal"])]
UNSIGNED = [(0.0, "#ffffff"), (1.0, LIGHT["edited"])]


def interactive(picture: Picture) -> go.Figure:
    """Return ``picture`` as a plotly figure, with transparent grounds and no template."""
    count = len(picture.panels)
    found = make_subplots(rows=count, cols=1, shared_xaxes=picture.shares_x and count > 1)
    for row, panel in enumerate(picture.panels, start=1):
        for mark in panel.marks:
            for trace in _traces(mark):
                found.add_trace(trace, row=row, col=1)
        _axes(found, panel, row)
    found.update_layout(
        title=picture.title,
        height=PANEL * count + 90,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": LIGHT["muted"]},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    return found


def _axes(found: go.Figure, panel: Panel, row: int) -> None:
    is_matrix = any(isinstance(mark, Heat) for mark in panel.marks)
    has_dots = any(isinstance(mark, Dots) for mark in panel.marks)
    found.update_xaxes(title_text=panel.x_label, row=row, col=1, showgrid=has_dots)
    found.update_yaxes(
        title_text=panel.y_label,
        row=row,
        col=1,
        showgrid=not has_dots,
        gridcolor=LIGHT["grid"],
        zeroline=panel.zero and not has_dots,
        autorange="reversed" if has_dots or is_matrix else True,
    )


def _traces(mark: Mark) -> list[Any]:
    if isinstance(mark, Line):
        return _line(mark)
    if isinstance(mark, Dots):
        return [_dots(mark)]
    if isinstance(mark, Points):
        return [_points(mark)]
    return [_heat(mark)]


def _line(line: Line) -> list[Any]:
    colour = LIGHT[line.role]
    found: list[Any] = []
    if line.low is not None and line.high is not None:
        found.append(
            go.Scatter(
                x=[*line.x, *line.x[::-1]],
                y=[*line.high, *line.low[::-1]],
                fill="toself",
                fillcolor=colour,
                opacity=BAND,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    style = {"color": colour, "width": 2, "dash": "dash" if line.dashed else "solid"}
    found.append(
        go.Scatter(
            x=line.x,
            y=line.y,
            mode="lines",
            line=style,
            name=line.label,
            showlegend=bool(line.label),
        )
    )
    return found


def _dots(dots: Dots) -> Any:
    return go.Scatter(
        x=dots.values,
        y=dots.names,
        error_x=_bars(dots.values, tuple(zip(dots.low, dots.high, strict=True))),
        mode="markers",
        marker={"color": [LIGHT[role] for role in dots.roles], "size": 8},
        showlegend=False,
    )


def _points(points: Points) -> Any:
    labels = points.labels or ("",) * len(points.x)
    return go.Scatter(
        x=points.x,
        y=points.y,
        error_x=_bars(points.x, points.x_ends),
        error_y=_bars(points.y, points.y_ends),
        mode="markers",
        marker={"color": LIGHT[points.role]},
        text=labels,
        name=points.label,
        showlegend=bool(points.label),
    )


def _bars(
    values: tuple[float, ...], ends: tuple[tuple[float, float], ...]
) -> dict[str, Any] | None:
    """Return the intervals of ``values`` as plotly draws them; None where there are none."""
    if not ends:
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
    }


def _heat(heat: Heat) -> Any:
    scale = heat.scale
    limits: dict[str, Any] = {"zmid": 0.0} if heat.is_signed else {"zmin": 0.0}
    if scale is not None:
        limits = {"zmin": -scale if heat.is_signed else 0.0, "zmax": scale}
    return go.Heatmap(
        z=heat.values,
        x=heat.columns,
        y=heat.rows,
        colorscale=SIGNED if heat.is_signed else UNSIGNED,
        colorbar={"title": heat.unit},
        **limits,
    )
