"""The atlas: every finding of one model on one self-contained page, light or dark."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from obliteratus.analysis.audit import AuditRow, audit
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.module import ANALYSES
from obliteratus.errors import StorageError
from obliteratus.measure.words import REFUSAL, Words
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.spec import reworded
from obliteratus.pictures.style import DARK, LIGHT, as_svg
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.store import write_json

ATLAS_FILE, FACTS_FILE = "atlas.html", "analysis.json"
WORDS: Mapping[Verdict, str] = {
    "supported": "✓ found",
    "not_supported": "✗ not there",
    "undetermined": "? undetermined",
}


@dataclass(frozen=True)
class LeftOut:
    """An analysis whose question has no answer for this model, and why."""

    module: str
    reason: str


@dataclass(frozen=True)
class Atlas:
    """All findings of one model by module, what was left out, and what was analysed and how.

    ``facts`` are JSON-ready: model, prompts, behaviour, settings, seconds. ``words`` are those of
    the behaviour: the page speaks in them.
    """

    findings: Mapping[str, Findings]
    left_out: tuple[LeftOut, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    words: Words = REFUSAL


def save_atlas(atlas: Atlas, folder: Path) -> None:
    """Write ``atlas.html`` and ``analysis.json`` (facts, audit, what was left out) into ``folder``.

    Raises:
        StorageError: a file cannot be written.
    """
    left = [{"module": each.module, "reason": each.reason} for each in atlas.left_out]
    try:
        rows = [each.as_json() for each in audit(atlas.findings)]
        write_json(folder / FACTS_FILE, {**atlas.facts, "audit": rows, "left_out": left})
        (folder / ATLAS_FILE).write_text(as_page(atlas), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the atlas in {folder}: {error}.") from error


def as_page(atlas: Atlas) -> str:
    """Return the atlas as HTML that needs no network and no other file."""
    template = resources.files("obliteratus.analysis") / "templates" / "atlas.html.j2"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template.read_text("utf-8")).render(
        name=atlas.facts.get("model", {}).get("asked", "model"),
        light=LIGHT,
        dark=DARK,
        audit=[_audited(each, atlas.words) for each in audit(atlas.findings)],
        sections=[_section(name, found, atlas.words) for name, found in atlas.findings.items()],
        left_out=[
            (atlas.words.reworded(ANALYSES[each.module].title), each.reason)
            for each in atlas.left_out
        ],
        facts=_facts(atlas.facts),
    )


def _section(name: str, found: Findings, words: Words) -> dict[str, Any]:
    analysis, say = ANALYSES[name], words.reworded
    pictures = [reworded(each, say) for each in analysis.pictures(found)]
    return {
        "id": name,
        "title": say(analysis.title),
        "headline": found.headline,
        "question": say(analysis.question),
        "method": say(analysis.method),
        "null": say(analysis.null),
        "source": analysis.source,
        "cost": say(analysis.cost),
        "estimates": [_estimate(say(_spaced(key)), e) for key, e in found.estimates.items()],
        "pictures": [
            {"title": each.title, "caption": each.caption, "svg": as_svg(drawn(each))}
            for each in pictures
        ],
    }


def _audited(row: AuditRow, words: Words) -> dict[str, Any]:
    question, answer = words.reworded(row.question), words.reworded(row.answer)
    is_there = row.estimate is not None
    figures = _estimate("", row.estimate) if row.estimate is not None else {}
    return {
        "question": question,
        "answer": answer,
        "module": row.module if is_there else "",
        "verdict": figures.get("verdict", "muted"),
        "value": figures.get("value", ""),
        "interval": figures.get("interval", ""),
        "null": figures.get("null", ""),
    }


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _estimate(name: str, each: Estimate) -> dict[str, Any]:
    low, high = each.interval
    return {
        "name": name,
        "value": f"{each.value:.3g}",
        "interval": f"{low:.3g} to {high:.3g}",
        "null": "–" if each.null is None else f"{each.null:.3g}",
        "n": each.n,
        "verdict": each.verdict,
        "word": WORDS[each.verdict],
    }


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = facts.get("model", {})
    rows = [
        ("model", f"{model.get('asked', '')}, {facts.get('model_type', '')}"),
        ("size", f"{facts.get('layers', '?')} layers of width {facts.get('d_model', '?')}"),
        ("fingerprint", str(model.get("fingerprint", ""))[:12]),
        ("behaviour", str(facts.get("behaviour", ""))),
        ("prompts", str(facts.get("prompts", {}).get("sha256", ""))[:12]),
        ("seed", str(facts.get("settings", {}).get("seed", 0))),
    ]
    return [(name, value) for name, value in rows if value]
