"""The look: one set of colours for light and dark, fonts that are here, and room to read."""

from importlib import resources
from typing import Any

from gradio import themes

from obliteratus.pictures.style import DARK, LIGHT

STYLES = ("style.css", "compare.css")
WEIGHTS = (400, 700)  # the files that gradio ships for 500 and 600 lack most letters


def appearance() -> dict[str, Any]:
    """Return what gradio takes at launch: the theme, the style sheet and the head of the page."""
    files = resources.files("obliteratus.ui") / "assets"
    style = "".join((files / name).read_text(encoding="utf-8") for name in STYLES)
    script = (files / "page.js").read_text(encoding="utf-8")
    return {
        "theme": _theme(),
        "css": f"{_variables(':root', LIGHT)}{_variables('.dark', DARK)}{style}",
        "head": f'<meta name="color-scheme" content="light dark"><script>{script}</script>',
    }


def _variables(where: str, colours: dict[str, str]) -> str:
    return f"{where} {{ {' '.join(f'--{role}: {each};' for role, each in colours.items())} }}\n"


def _theme() -> themes.Base:
    """Return the theme; every colour of it is one of the pictures' colours."""
    found = themes.Base(
        primary_hue=themes.Color(*(_mix(LIGHT["edited"], place) for place in range(11))),
        neutral_hue=themes.Color(
            "#f7f9fb", "#eef1f5", "#e3e7ee", "#cfd6e0", "#9aa5b5", "#6b7686",
            "#566070", "#3c4451", "#262c35", "#1b1f27", "#14171c",
        ),
        font=(themes.LocalFont("IBM Plex Sans", WEIGHTS), "system-ui", "sans-serif"),
        font_mono=(themes.LocalFont("IBM Plex Mono", WEIGHTS), "ui-monospace", "monospace"),
        radius_size=themes.sizes.radius_sm,
        text_size=themes.sizes.text_md,
        spacing_size=themes.sizes.spacing_md,
    )  # fmt: skip
    return found.set(
        body_background_fill="var(--page)",
        body_background_fill_dark="var(--page)",
        body_text_color="var(--ink)",
        body_text_color_dark="var(--ink)",
        body_text_color_subdued="var(--muted)",
        body_text_color_subdued_dark="var(--muted)",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="var(--muted)",
        block_label_text_color_dark="var(--muted)",
        block_title_text_color="var(--muted)",
        block_title_text_color_dark="var(--muted)",
        block_title_text_weight="500",
        block_padding="0",
        input_background_fill="var(--field)",
        input_background_fill_dark="var(--field)",
        input_border_color="var(--line)",
        input_border_color_dark="var(--line)",
        input_border_width="1px",
        input_shadow="none",
        border_color_primary="var(--line)",
        border_color_primary_dark="var(--line)",
        button_primary_background_fill="var(--accent)",
        button_primary_background_fill_dark="var(--accent)",
        button_primary_background_fill_hover="var(--accent-strong)",
        button_primary_background_fill_hover_dark="var(--accent-strong)",
        button_primary_text_color="var(--on-accent)",
        button_primary_text_color_dark="var(--on-accent)",
        button_secondary_background_fill="var(--field)",
        button_secondary_background_fill_dark="var(--field)",
        button_secondary_border_color="var(--line)",
        button_secondary_border_color_dark="var(--line)",
        button_secondary_text_color="var(--ink)",
        button_secondary_text_color_dark="var(--ink)",
        link_text_color="var(--edited)",
        link_text_color_dark="var(--edited)",
        error_background_fill="var(--card)",
        error_background_fill_dark="var(--card)",
    )


def _mix(colour: str, place: int) -> str:
    """Return shade ``place`` of ``colour``: 0 is near to white, 6 the colour, 10 near to black."""
    parts = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    end, share = (255, (6 - place) / 6.6) if place < 6 else (0, (place - 6) / 6.0)
    return "#" + "".join(f"{round(part + (end - part) * share):02x}" for part in parts)
