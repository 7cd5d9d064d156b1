"""From a YAML file to a study, with every mistake named where it is."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError
from typing_extensions import override

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.studies.schema import Study

YAML_SUFFIXES = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """Plain YAML, but a key that stands twice is an error: the last one would win in silence."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise UsageError(
                    f"'{name}' stands in line {seen[name]} and again in line {line}; which one is "
                    "meant? Delete the other."
                )
            seen[name] = line
        return super().construct_mapping(node, deep=deep)


def read_study(path: Path) -> Study:
    """Return the study of a YAML file.

    Raises:
        UsageError: there is no such file, it is no YAML or no mapping, a key stands twice or is
            unknown (the nearest one is named), a value is out of range, or there is nothing to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        near = _beside(path)
        raise UsageError(f"there is no study file {path}.{near}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error}). Save it as such.") from error
    return study_of_text(text, str(path))


def study_of_text(text: str, source: str) -> Study:
    """Return the study that ``text`` says; ``source`` is named in errors.

    Raises:
        UsageError: see :func:`read_study`.
    """
    try:
        values: object = yaml.load(text, _Loader)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise UsageError(f"{source} {what}; a study is a mapping with name, models, methods, ...")
    return study_of(cast(Mapping[str, Any], values), source)


def study_of(values: Mapping[str, Any], source: str) -> Study:
    """Return the study of a mapping.

    Raises:
        UsageError: see :func:`read_study`.
    """
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {_in_words(error)}") from error


def _in_words(error: ValidationError) -> str:
    first = error.errors()[0]
    place = first["loc"]
    where = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        *above, name = place
        return f"no key called '{where}'.{did_you_mean(str(name), _keys(Study, above))}"
    if first["type"] == "literal_error":
        asked, context = str(first["input"]), first.get("ctx", {})
        near = did_you_mean(asked, _quoted(str(context.get("expected", ""))))
        return f"{where}: there is no '{asked}'.{near}"
    if first["type"] == "missing":
        return f"'{where}' is missing; write it."
    if first["type"] == "string_pattern_mismatch":
        return (
            f"{where}: '{first['input']}' cannot be the name of a folder; use letters and digits."
        )
    what = first["msg"].removeprefix("Value error, ").removesuffix(".")
    return f"{where}: {what}." if where else f"{what}."


def _keys(schema: type[BaseModel], place: Sequence[int | str]) -> Iterable[str]:
    """Return the keys that there are at ``place``, an index or a key at a time."""
    for part in place:
        if isinstance(part, str):
            found = _section(schema.model_fields[part].annotation)
            if found is None:
                return ()
            schema = found
    return schema.model_fields


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the section in ``Section`` or ``tuple[Section, ...]``."""
    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _quoted(text: str) -> list[str]:
    """Return the words between quotes of ``'a', 'b' or 'c'``."""
    return text.split("'")[1::2]


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [each.name for each in path.parent.iterdir() if each.suffix in YAML_SUFFIXES]
    return did_you_mean(path.name, names) if names else ""
