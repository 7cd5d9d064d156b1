"""The picture of the cost of an attack: refusal left and divergence, before and after."""

from pathlib import Path

from obliteratus.hardening.curve import Curve
from obliteratus.hardening.result import Hardening
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.spec import Line, Panel, Picture, Role, estimates_line
from obliteratus.pictures.style import as_png, as_svg
from obliteratus.verify.formatting import number

SVG, PNG = "harden.svg", "harden.png"


def cost_picture(found: Hardening) -> Picture:
    """Return refusal and first-token KL by the number of directions out of every write."""
    ended = found.before.ended
    ranks = sorted({row.rank for curve in (found.before, found.after) for row in curve.rows})
    ends = (float(ranks[0]), float(ranks[-1]))
    refusal = (
        _refusal("before", found.before),
        _refusal("after", found.after, "edited"),
        _refusal("after, known directions", found.known, "muted", dashed=True),
        Line(f"refusal has ended ({number(ended, 'share')})", ends, (ended, ended),
             role="refusal", dashed=True),
    )  # fmt: skip
    divergence = (_kl(found.before, "original"), _kl(found.after, "edited"))
    return Picture(
        title=f"Cost of an attack, {found.recipe}",
        caption=(
            "Above: the share of harmful test prompts refused. Below: first-token KL to the same "
            "model untouched, on harmless test prompts. Bands are 95 % intervals. "
            f"{found.headline}"
        ),
        panels=(
            Panel(refusal, y_label="refused", whole_x=True),
            Panel(divergence, "directions out of every write", "first-token KL", whole_x=True),
        ),
    )


def _refusal(label: str, curve: Curve, role: Role = "original", *, dashed: bool = False) -> Line:
    x = [float(row.rank) for row in curve.rows]
    line = estimates_line(label, x, [row.refusal for row in curve.rows], role, dashed=dashed)
    return Line(label, line.x, line.y, role=role, dashed=True) if dashed else line


def _kl(curve: Curve, role: Role) -> Line:
    rows = [row for row in curve.rows if row.kl is not None]
    return estimates_line("", [float(row.rank) for row in rows], [row.kl for row in rows], role)


def save_pictures(found: Hardening, folder: Path) -> None:
    """Write the picture into an existing ``folder``: as SVG and as PNG.

    Raises:
        OSError: a file cannot be written.
    """
    picture = cost_picture(found)
    figure = drawn(picture)
    (folder / SVG).write_text(as_svg(figure), encoding="utf-8")
    (folder / PNG).write_bytes(as_png(figure))
