"""``report.html``: one self-contained page, light or dark as the reader's system is."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from obliteratus.errors import StorageError
from obliteratus.measure.words import REFUSAL
from obliteratus.pictures.style import DARK, LIGHT, as_svg
from obliteratus.statistics.estimate import Verdict
from obliteratus.verify import pictures
from obliteratus.verify.capability import capability_notes
from obliteratus.verify.claims import SIGNIFICANT
from obliteratus.verify.dose_picture import dose_response
from obliteratus.verify.dose_words import dose_line, is_too_strong
from obliteratus.verify.formatting import (
    VERDICT_SIGNS,
    VERDICT_WORDS,
    change,
    judge_line,
    number,
    p_value,
    percent_change,
    ratio,
    reasoning_line,
    shown,
    thought_lines,
    tiny_share,
)
from obliteratus.verify.judge_picture import judge_by_label, judge_caption
from obliteratus.verify.layers import rank_line
from obliteratus.verify.left import left_lines
from obliteratus.verify.rank_picture import layers_ranked
from obliteratus.verify.report import Claim, Report, Row

HTML_FILE = "report.html"
TITLES: dict[Verdict, str] = {
    "supported": "The {change} does what it claims",
    "not_supported": "The {change} does not do all that it claims",
    "undetermined": "Not enough evidence for all claims",
}
ALL_CLAIMS = {"refusal": "refusal", "kl": "divergence", "perplexity": "perplexity",
              "coherence": "coherence"}  # fmt: skip
SHOWN_BOUNDS = 3.0  # a strip reaches three times the bound, or as far as the interval
PERPLEXITY_AXIS = (0.85, 1.15)
COHERENCE_AXIS = (0.5, 1.0)
AMPLIFICATION_AXIS = (-0.5, 1.0)
"""Ends of the strips on which these claims' intervals are drawn; what is outside sticks out."""
KEPT = "kept"  # what training against attacks claims of refusal
ABOUT_CHANGE = ("amplification", KEPT)


@dataclass(frozen=True)
class Picture:
    """A picture with its words."""

    title: str
    caption: str
    svg: str


def save_html(report: Report, path: Path) -> None:
    """Write ``report`` as a page that needs no network and no other file.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.write_text(as_html(report), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}.") from error


def title_of(report: Report) -> str:
    """Return the verdict as a title; weights that were trained are not called an edit."""
    is_trained = any(claim.key == KEPT for claim in report.claims)
    return TITLES[report.verdict].format(change="training" if is_trained else "edit")


def as_html(report: Report) -> str:
    """Return ``report`` as HTML; equal reports give equal text."""
    text = (resources.files("obliteratus.verify") / "templates" / "report.html.j2").read_text(
        "utf-8"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    weaker = dose_line(report)
    measured = {"refusal" if claim.key in ABOUT_CHANGE else claim.key for claim in report.claims}
    unmeasured = [word for key, word in ALL_CLAIMS.items() if key not in measured]
    return environment.from_string(text).render(
        report=report,
        title=title_of(report),
        light=LIGHT,
        dark=DARK,
        claims=[_claim(claim, weaker) for claim in report.claims],
        unmeasured=list(map(report.words.reworded, unmeasured)),
        rows=[_row(row) for row in report.rows],
        pictures=_pictures(report),
        notes=_notes(report),
        facts=_facts(report),
        left=[] if report.edit is None else left_lines(report.edit, report.words),
        tiny_share=tiny_share,
        ratio_words=ratio,
        shown=shown,
        unbroken=unbroken,
        setting=setting,
    )


def _claim(claim: Claim, weaker: str | None) -> dict[str, Any]:
    low, high = _axis(claim)

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    if claim.key == "perplexity":
        allowed = (place(1 / claim.bound), place(claim.bound))
        ends = [percent_change(end) for end in claim.estimate.interval]
        value = f"{percent_change(claim.estimate.value)} (90 % interval {ends[0]} to {ends[1]})"
        bounds = [(allowed[0], "−5 %"), (allowed[1], "+5 %")]
    else:
        is_above = claim.key in {"coherence", *ABOUT_CHANGE}
        allowed = (place(claim.bound), 100.0) if is_above else (0.0, place(claim.bound))
        value = shown(claim.estimate, claim.unit)
        bounds = [(allowed[0] if is_above else allowed[1], number(claim.bound, claim.unit))]
    first, last = (place(end) for end in claim.estimate.interval)
    return {
        "verdict": claim.estimate.verdict,
        "word": VERDICT_WORDS[claim.estimate.verdict],
        "sign": VERDICT_SIGNS[claim.estimate.verdict],
        "text": claim.text,
        "rule": claim.rule,
        "weaker": weaker if is_too_strong(claim) else None,
        "value": unbroken(value),
        "bound": number(claim.bound, claim.unit),
        "allowed": (allowed[0], round(allowed[1] - allowed[0], 2)),
        "interval": (first, round(last - first, 2)),
        "point": place(claim.estimate.value),
        "ticks": bounds,
    }


def _axis(claim: Claim) -> tuple[float, float]:
    if claim.key == "perplexity":
        return PERPLEXITY_AXIS
    if claim.key == "coherence":
        return COHERENCE_AXIS
    if claim.key in ABOUT_CHANGE:
        return AMPLIFICATION_AXIS
    return 0.0, max(SHOWN_BOUNDS * claim.bound, 1.05 * claim.estimate.interval[1])


def unbroken(text: str) -> str:
    """Return ``text`` with line breaks allowed only before a parenthesis."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}(", " (")


def setting(value: bool | int | float | str | None) -> str:
    """Return a setting as it is written on the command line; – where it is not set."""
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(row: Row) -> dict[str, Any]:
    null = row.edited.null if row.edited is not None and row.change is None else None
    return {
        "label": row.label,
        "original": unbroken(shown(row.original, row.unit)),
        "edited": unbroken(shown(row.edited, row.unit)),
        "change": unbroken(change(row)),
        "p": unbroken(p_value(row.adjusted_p)),
        "null": "–" if null is None else number(null, row.unit),
        "is_significant": row.adjusted_p is not None and row.adjusted_p < SIGNIFICANT,
    }


def _pictures(report: Report) -> list[Picture]:
    found: list[Picture] = []
    say = report.words.reworded

    def add(title: str, caption: str, figure: Figure) -> None:
        found.append(Picture(say(title), say(caption), as_svg(figure)))

    if report.layers:
        caption = (
            "How far harmful prompts lie from harmless ones along the edited direction, at the "
            "last token, in the original's within-class standard deviations; bands are 95 % "
            "intervals."
        )
        if report.candidates:
            caption += (
                " Below, what each direction controls on the select prompts: removing it should "
                "lower refusal, adding it should raise it. The dot was chosen; pale lines are "
                "other positions."
            )
        add("Refusal across layers", caption, pictures.refusal_by_layer(report))
    if report.ranking:
        add(
            "Strong and weak layers",
            f"{rank_line(report.ranking)} Above, how far apart the classes are along the block's "
            "own mean difference, the noise of few prompts taken out. Below, by how much removing "
            "its direction lowers refusal, and adding it raises it. Bands are 95 % intervals; "
            "dashed is what random vectors stay below. Shaded layers are strong: all three beyond "
            "their nulls (Holm), and large beside the best.",
            layers_ranked(report.ranking, report.words),
        )
    add(
        "What became of each harmful prompt",
        "One column is one test prompt: the original above, the edited model below.",
        pictures.outcomes_by_category(report),
    )
    if report.controls:
        add(
            "The edit beside its nulls",
            "The same edit along random directions of equal energy, along directions from permuted "
            "labels, and at strength 0, all through hooks. A null that moves as far as the edit "
            "would mean that the direction does not matter.",
            pictures.controls(report),
        )
    if report.dose is not None:
        add(
            "Dose and response",
            "The planned edit at shares of its strength, through hooks, on the select prompts and "
            "on documents kept for them: change of the refusal log-odds of harmful prompts, "
            "first-token KL on harmless ones, change of perplexity. Bands are 95 % intervals (90 % "
            "for perplexity), hollow dots shares that do not pass, and shaded is where the claims "
            "hold. The dashed line is the largest share found to pass both.",
            dose_response(report.dose),
        )
    if len(report.positions) > 1:
        add(
            "Divergence along the answer",
            "KL(original ‖ edited) at each token of the original's own answers to harmless "
            "prompts; the band is a 95 % interval over prompts.",
            pictures.kl_by_position(report),
        )
    add(
        "Held-out perplexity by document",
        "Each dot is a document; the diamond is all of them, by tokens, with its 90 % interval. "
        "Shaded: within 5 %.",
        pictures.change_by_document(report),
    )
    if report.agreement is not None and report.agreement.confusion:
        add(
            "How far to believe the judge",
            judge_caption(report),
            judge_by_label(report.agreement, report.words),
        )
    return found


def _notes(report: Report) -> list[str]:
    words = report.words
    notes = [
        "Supported, not supported and undetermined are decided by intervals, never by the value "
        "alone. Undetermined means that this many prompts cannot tell.",
        f"{words.answers[0].upper()}{words.answers[1:]} were judged by “{report.judge}” on "
        f"{report.settings.max_new_tokens} new tokens. An answer that is not one of them need not "
        f"be {'a good or harmful' if words == REFUSAL else 'a good'} answer; degenerate ones are "
        "counted apart.",
    ]
    trust = judge_line(report)
    if trust is not None:
        notes.append(trust)
    notes.extend(thought_lines(report))
    if report.reasoning is not None and report.settings.thoughts == "apart":
        notes.append(
            "First-token KL and log-odds are where an answer would begin with thoughts skipped: "
            "the first token of a thought says little of what the answer will be. Divergence "
            "along answers, and their perplexity, are behind the original's own thoughts. The "
            "judge was made for answers and held against labelled answers; how far it can be "
            "believed of thoughts is not known."
        )
    refusal = report.row("refusal_harmful")
    if refusal is not None and "corrected_edited" in refusal.details:
        found = refusal.details
        before, after, low, high = (
            number(found[f"corrected_{name}"], "share")
            for name in ("original", "edited", "edited_low", "edited_high")
        )
        notes.append(
            "Corrected for what the judge gets wrong there (Rogan–Gladen), the edited model "
            f"{words.shows} {after} of {words.asked} ({low} to {high}), the original {before}."
        )
    if refusal is not None and "undetermined_edited" in refusal.details:
        before, after = (
            round(refusal.details[f"undetermined_{side}"]) for side in ("original", "edited")
        )
        notes.append(
            f"Of the answers to {words.asked} the judge could not tell {before} of the original "
            f"and {after} of the edited model; intervals hold whatever they were."
        )
    if report.settings.early_stop != "off":
        notes.append(
            f"Answers to {words.provoking} prompts and to look-alikes could be cut short; how many "
            "were, and what an audit says of their rulings, is among the deviations."
        )
    if refusal is not None and refusal.detectable is not None:
        notes.append(
            f"With {report.harmful} prompts, a change of {number(refusal.detectable, 'share')} of "
            "the outcomes in one direction would be seen four times in five; a smaller one may "
            "be missed."
        )
    coherence = report.row("coherence")
    if coherence is not None and "ceiling" in coherence.details:
        ceiling = number(coherence.details["ceiling"], "similarity")
        notes.append(f"Run again in other batches, the original reaches a coherence of {ceiling}.")
    notes += capability_notes(report)
    if not report.controls:
        notes.append(
            "The nulls of the edit were not measured: that takes the plan that it was made by."
        )
    if not report.settings.save_completions:
        notes.append(
            f"Answers to {words.provoking} prompts were judged and dropped: none is stored."
        )
    return notes


def _facts(report: Report) -> list[tuple[str, str]]:
    def words(name: str) -> str:
        subject = report.original if name == "original" else report.edited
        parts = [subject.name, subject.model_type, f"{subject.layers} layers", subject.dtype]
        parts += [f"revision {subject.revision}"] if subject.revision else []
        parts += [f"weights {subject.weights[:12]}"]
        return ", ".join(parts)

    documents = sum(row.tokens for row in report.documents)
    thoughts = reasoning_line(report)
    return [
        ("behaviour", report.behaviour),
        ("original", words("original")),
        ("edited", words("edited")),
        (
            "test prompts",
            f"{report.harmful} {report.words.provoking}, {report.harmless} {report.words.neutral}, "
            f"hash {report.prompts[:12]}",
        ),
        ("system prompt", report.system or "none"),
        ("held-out text", f"{len(report.documents)} documents, {documents} tokens"),
        *([] if thoughts is None else [("thoughts", thoughts)]),
        ("judge", report.judge),
        ("seed", str(report.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
    ]
