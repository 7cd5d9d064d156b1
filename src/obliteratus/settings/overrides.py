"""``key=value`` overrides, and settings out of nested mappings."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.settings.run import RunSettings
from obliteratus.settings.section import Section

S = TypeVar("S", bound=Section)


def with_overrides(
    settings: dict[str, Any], assignments: Sequence[str], *, schema: type[Section] = RunSettings
) -> dict[str, Any]:
    """Return ``settings`` with every ``section.key=value`` of ``assignments`` put in.

    A value is read as YAML, so ``1``, ``true``, ``null`` and ``[a, b]`` mean what they look like.

    Raises:
        UsageError: an assignment has no ``=``, or its key does not exist.
    """
    result = copy.deepcopy(settings)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"'{assignment}' is not key=value; write for example edit.strength=1.")
        _check_key(key.strip(), schema)
        *sections, name = key.strip().split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UsageError(f"{key} cannot be set inside {target!r}; give one or the other.")
        try:
            target[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"the value of {key} cannot be read: {error}") from error
    return result


def settings_from(values: dict[str, Any]) -> RunSettings:
    """Validate a nested mapping into :class:`RunSettings`, as :func:`validated` does."""
    return validated(values, RunSettings)


def validated(values: dict[str, Any], schema: type[S]) -> S:
    """Validate a nested mapping into ``schema``.

    Raises:
        UsageError: a key is unknown (the nearest one is named) or a value is out of range.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        found = (
            error.errors()
        )  # a mistyped key may also be a missing one: the typing error is shown
        first = min(found, key=lambda each: each["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            _check_key(where, schema)
        what = first["msg"].removeprefix("Value error, ").removesuffix(".")
        end = "" if what.endswith("?") else "."
        start = f"setting {where}: " if where else ""
        raise UsageError(f"{start}{what}{end}") from error


def _check_key(key: str, schema: type[Section]) -> None:
    known = valid_keys(schema)
    if key not in known:
        raise UsageError(f"no setting called '{key}'.{did_you_mean(key, known)}")


def valid_keys(schema: type[Section] = RunSettings) -> list[str]:
    """Return every dotted key that ``--set`` accepts, in the order of the schema."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            keys.extend([name] if annotation.is_value else [])
            keys.extend(f"{name}.{key}" for key in valid_keys(annotation))
        else:
            keys.append(name)
    return keys
