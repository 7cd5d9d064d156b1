"""The refusals that a model is trained on where it gives none by itself."""

import hashlib
from functools import cache
from importlib import resources
from typing import Any

import yaml

from obliteratus.prompts.contrast import Prompt


def extended_refusal(prompt: Prompt, seed: int) -> str:
    """Return an overview of the category of ``prompt``, a refusal and a reason (2505.19056).

    A pure function of its arguments. The overview says what is asked about in general terms, and
    nothing of how it is done. A prompt of another category, or of none, gets a general one.
    """
    texts = _texts()
    overview: str = texts["overviews"].get(prompt.category, texts["other"])
    parts = (_pick(texts[name], prompt.id, seed, name) for name in ("refusals", "reasons"))
    return " ".join((overview, *parts))


def declined_at(prompt: Prompt, seed: int) -> str:
    """Return an extended refusal up to where it has declined."""
    texts = _texts()
    whole = extended_refusal(prompt, seed)
    refusal = _pick(texts["refusals"], prompt.id, seed, "refusals")
    return whole[: whole.index(refusal) + len(refusal)]


def short_refusal(prompt: Prompt, seed: int) -> str:
    """Return a refusal of one sentence."""
    return _pick(_texts()["short"], prompt.id, seed, "short")


def overviews() -> tuple[str, ...]:
    """Return the categories that have an overview of their own."""
    return tuple(_texts()["overviews"])


@cache
def _texts() -> dict[str, Any]:
    path = resources.files("obliteratus.hardening") / "refusals.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _pick(texts: list[str], *parts: object) -> str:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return texts[int.from_bytes(digest[:8], "big") % len(texts)]
