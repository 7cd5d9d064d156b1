"""Dose and response as curves whose points can be chosen, by pointer or by keyboard."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.words import MINUS, Unit, shown, signed
from obliteratus.ui.drawing import render

WIDTH, HEIGHT = 640.0, 116.0  # of a panel, in the units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 64.0, 12.0, 10.0, 8.0


@dataclass(frozen=True)
class Curve:
    """One quantity over the strength, in ``unit``; ``role`` is its colour, ``rest`` no effect."""

    key: str
    part: str
    label: str
    unit: Unit
    role: str
    rest: float | None


CURVES = (
    Curve("refusal_harmful", "edited", "refusal", "share", "refusal", 0.0),
    Curve("log_odds_harmful", "change", "log-odds change", "log-odds", "refusal", 0.0),
    Curve("kl_first", "edited", "first-token KL, nats", "nats", "edited", 0.0),
    Curve("perplexity_heldout", "change", "perplexity ratio", "ratio", "edited", 1.0),
    Curve("coherence", "edited", "similarity of answers", "similarity", "edited", None),
)


def drawn(points: Sequence[Mapping[str, Any]], chosen: float | None) -> str:
    """Return the points of ``sweep.json`` as panels over one axis; ``chosen`` is marked."""
    strengths = [float(point["strength"]) for point in points]
    across = _Scale(min(strengths), max(strengths), LEFT, WIDTH - RIGHT)
    panels = [
        panel for curve in CURVES if (panel := _panel(curve, points, across, chosen)) is not None
    ]
    ticks = [
        {"x": across(each), "text": f"{each:g}".replace("-", MINUS)} for each in _ticks(strengths)
    ]
    return render(
        "curves", panels=panels, ticks=ticks, width=WIDTH, height=HEIGHT, left=LEFT, right=RIGHT,
        chosen=None if chosen is None else across(chosen),
    )  # fmt: skip


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def _panel(
    curve: Curve, points: Sequence[Mapping[str, Any]], across: _Scale, chosen: float | None
) -> dict[str, Any] | None:
    found: list[tuple[float, Estimate]] = []
    for point in points:
        row = point["rows"].get(curve.key)
        if row is not None and row[curve.part] is not None:
            found.append((float(point["strength"]), Estimate.from_json(row[curve.part])))
    if not found:
        return None
    ends = [end for _, each in found for end in each.interval if math.isfinite(end)]
    ends += [each.value for _, each in found] + ([] if curve.rest is None else [curve.rest])
    low, high = min(ends), max(ends)
    spare = (high - low) * 0.04 or 0.5
    down = _Scale(low - spare, high + spare, HEIGHT - BOTTOM, TOP)
    upper = [f"{across(x)},{down(each.interval[1])}" for x, each in found]
    lower = [f"{across(x)},{down(each.interval[0])}" for x, each in found]
    return {
        "label": curve.label,
        "role": curve.role,
        "band": " ".join([*upper, *lower[::-1]]),
        "line": " ".join(f"{across(x)},{down(each.value)}" for x, each in found),
        "rest": None if curve.rest is None else down(curve.rest),
        "scale": [{"y": down(each), "text": _end(each, curve.unit)} for each in (low, high)],
        "dots": [
            {
                "x": across(x),
                "y": down(each.value),
                "strength": f"{x:g}",
                "is_chosen": x == chosen,
                "text": f"strength {x:g}: {curve.label} {shown(each, curve.unit)}, n = {each.n}",
            }
            for x, each in found
        ],
    }


def _end(value: float, unit: Unit) -> str:
    return signed(value, unit) if unit == "log-odds" else shown_number(value, unit)


def shown_number(value: float, unit: Unit) -> str:
    """Return an end of an axis: two digits are enough there."""
    return f"{100 * value:.0f} %" if unit == "share" else f"{value:.3g}".replace("-", MINUS)


def _ticks(strengths: Sequence[float]) -> list[float]:
    low, high = math.ceil(2 * min(strengths)) / 2, math.floor(2 * max(strengths)) / 2
    return [low + step / 2 for step in range(round(2 * (high - low)) + 1)]
