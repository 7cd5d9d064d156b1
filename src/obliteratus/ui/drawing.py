"""Pieces of the page as HTML, from templates that escape everything that is put into them."""

import functools
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from obliteratus.amounts import duration, rate, share_done
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.words import Unit, p_value, ratio, shown
from obliteratus.ui.jobs import View
from obliteratus.ui.record import StageRow

LOG_LINES = 60  # of the log on the page, the newest last


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("obliteratus.ui"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {"duration": duration}
    return found


def render(template: str, **values: Any) -> str:
    """Return ``templates/<template>.html.j2`` with ``values``, each escaped."""
    return _environment().get_template(f"{template}.html.j2").render(**values)


def progress(view: View | None, *, now: float, idle: str) -> str:
    """Return a job's stages, its task with rate and time left, and its log; ``idle`` without one.

    ``now`` is in seconds since the epoch: a stage that runs has run until then.
    """
    if view is None:
        return render("idle", text=idle)
    rows = [
        {
            "name": row.stage,
            "mark": "failed" if view.is_over and row.mark == "running" else row.mark,
            "text": row.text,
            "took": _took(row, view, now),
        }
        for row in view.record.stages
    ]
    lines = [
        {"at": duration(max(0.0, line.time - view.record.began)), "label": line.label,
         "text": line.text}
        for line in view.record.lines[-LOG_LINES:]
    ]  # fmt: skip
    return render(
        "progress",
        view=view,
        rows=rows,
        task=None if view.is_over else _task(view),
        lines=lines,
        elapsed=_elapsed(view, now),
    )


def report(folder: Path, record: Mapping[str, Any]) -> str:
    """Return what a report says first: the verdict, and before and after with their intervals."""
    rows = [_row(row) for row in record["rows"] if row["edited"] is not None]
    return render(
        "report",
        folder=folder,
        verdict=record["verdict"],
        headline=record["headline"],
        claims=[
            {
                "text": claim["text"],
                "verdict": claim["estimate"]["verdict"],
                "value": _said(Estimate.from_json(claim["estimate"]), claim["unit"]),
                "rule": claim["rule"],
            }
            for claim in record["claims"]
        ],
        rows=rows,
    )


def framed(page: str, title: str, *, runs_scripts: bool = False) -> str:
    """Return a whole page inside a frame that can reach nothing of the page around it."""
    rights = "allow-scripts" if runs_scripts else "allow-same-origin"
    kind = "frame is-tall" if runs_scripts else "frame"
    return (
        f'<iframe class="{kind}" sandbox="{rights}" title="{html.escape(title, quote=True)}" '
        f'srcdoc="{html.escape(page, quote=True)}"></iframe>'
    )


def picture(svg: str, caption: str) -> str:
    """Return an SVG of :func:`obliteratus.pictures.style.as_svg` as a figure with its caption."""
    return f'<figure class="picture">{svg}<figcaption>{html.escape(caption)}</figcaption></figure>'


def alert(text: str) -> str:
    """Return a sentence that says what went wrong."""
    return render("alert", text=text)


def _task(view: View) -> dict[str, Any] | None:
    event = view.record.progress
    if event is None:
        return None
    words = [share_done(event.done, event.total, event.unit)]
    if event.rate > 0:
        words += [rate(event.rate, event.unit), f"{duration(event.seconds_left)} left"]
    return {
        "name": event.task,
        "done": event.done,
        "total": max(event.total, 1),
        "words": " · ".join(words),
    }


def _took(row: StageRow, view: View, now: float) -> str:
    if row.mark == "running" and not view.is_over:
        return duration(row.seconds + max(0.0, now - row.started))
    return "cached" if row.is_cached else duration(row.seconds)


def _elapsed(view: View, now: float) -> str:
    if not view.record.began:
        return ""
    return duration((view.record.last if view.is_over else now) - view.record.began)


def _said(estimate: Estimate, unit: Unit) -> str:
    return ratio(estimate) if unit == "ratio" else shown(estimate, unit)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one quantity with its places on a track from 0 to 1 where it is a share."""
    unit: Unit = row["unit"]
    pair = {
        name: None if row[name] is None else Estimate.from_json(row[name])
        for name in ("original", "edited", "change")
    }
    return {
        "label": row["label"],
        "unit": unit,
        "original": shown(pair["original"], unit),
        "edited": shown(pair["edited"], unit),
        "change": "–" if pair["change"] is None else _change(pair["change"], unit),
        "p": p_value(row["adjusted_p"]),
        "places": [
            None if each is None else _places(each) for each in (pair["original"], pair["edited"])
        ]
        if unit == "share"
        else [],
    }


def _change(estimate: Estimate, unit: Unit) -> str:
    return ratio(estimate) if unit == "perplexity" else shown(estimate, unit)


def _places(estimate: Estimate) -> dict[str, float]:
    low, high = (100 * min(1.0, max(0.0, each)) for each in estimate.interval)
    return {"value": 100 * estimate.value, "low": low, "width": high - low}
