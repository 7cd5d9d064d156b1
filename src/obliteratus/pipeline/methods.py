"""Methods as data: YAML presets that fill in the settings of a run, mostly DISTILL and EXCISE."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.settings import RunSettings, settings_from, with_overrides


@dataclass(frozen=True)
class Method:
    """A preset: its name, what it does in words, and the settings that it fills in.

    ``source`` is the publication that it follows (empty: made for this program), ``published`` what
    is that publication's, and ``here`` what it left open and what of it is not expressed.
    """

    name: str
    description: str
    values: dict[str, Any]
    source: str = ""
    published: str = ""
    here: str = ""


def methods() -> tuple[Method, ...]:
    """Return every preset, sorted by name."""
    folder = resources.files("obliteratus.pipeline") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return tuple(
        _method(file.name.removesuffix(".yaml"), file.read_text(encoding="utf-8")) for file in files
    )


def _method(name: str, text: str) -> Method:
    values: dict[str, Any] = yaml.safe_load(text)
    words = {key: values.pop(key, "") for key in ("description", "source", "published", "here")}
    return Method(name, values=values, **words)


def method_named(name: str) -> Method:
    """Return the preset called ``name``.

    Raises:
        UsageError: there is none; the nearest name is given.
    """
    known = {each.name: each for each in methods()}
    if name not in known:
        raise UsageError(f"no method called '{name}'.{did_you_mean(name, known)}")
    return known[name]


def settings_for(
    method: str, assignments: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> RunSettings:
    """Return the settings of ``method``, with ``base`` and then ``key=value`` assignments put in.

    Raises:
        UsageError: there is no such method or key (the nearest one is named), or a value is out of
            range.
    """
    values = merged(method_named(method).values, base or {})
    return settings_from(with_overrides({**values, "method": method}, assignments))


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested ``values`` in which ``over`` wins; neither is changed."""
    result = copy.deepcopy(dict(values))
    for key, value in over.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
        )
    return result
