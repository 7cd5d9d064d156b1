"""Whether runs are contributed, and where to: off unless the user said otherwise."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import platformdirs

from obliteratus.errors import UsageError, did_you_mean

Contribute = Literal["off", "ask", "always"]
CHOICES: tuple[Contribute, ...] = get_args(Contribute)
VARIABLE, SET_VARIABLE = "OBLITERATUS_CONTRIBUTE", "OBLITERATUS_DATA_SET"
DATA_SET = "obliteratus/community-runs"
"""The data set that is meant where none is named. Nobody runs it yet: name your own."""
CONFIG_FILE = "config.toml"
KEYS = ("contribute", "data_set")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[\w.\-]{1,96}")


@dataclass(frozen=True)
class Consent:
    """What the user allows.

    Attributes:
        contribute: ``off``; ``ask`` at the end of a run on a terminal; ``always``.
        data_set: The data set on the Hub, by its id.
        is_named: Whether the user named the data set; ``always`` asks for that.
    """

    contribute: Contribute = "off"
    data_set: str = DATA_SET
    is_named: bool = False


def config_path() -> Path:
    """Return the user's configuration file (``~/.config/obliteratus/config.toml`` on Linux)."""
    return Path(platformdirs.user_config_dir("obliteratus")) / CONFIG_FILE


def consent() -> Consent:
    """Return what the environment says, or else the configuration file; ``off`` where neither does.

    Raises:
        UsageError: a key or a value is not one of those that are known, or the file is no TOML.
    """
    path = config_path()
    stored = _stored(path)
    asked = os.environ.get(VARIABLE) or stored.get("contribute", "off")
    where = VARIABLE if os.environ.get(VARIABLE) else f"contribute in {path}"
    choice: Contribute | None = next((each for each in CHOICES if each == asked), None)
    if choice is None:
        hint = did_you_mean(str(asked), CHOICES)
        raise UsageError(f"{where} is '{asked}', which is no choice.{hint}")
    named = os.environ.get(SET_VARIABLE) or stored.get("data_set")
    data_set = DATA_SET if named is None else checked_id(str(named))
    return Consent(choice, data_set, named is not None)


def checked_id(name: str) -> str:
    """Return ``name`` if it can be a data set of the Hub.

    Raises:
        UsageError: it is not of the form owner/name.
    """
    if not HUB_ID.fullmatch(name):
        raise UsageError(f"'{name}' names no data set of the Hub. Write owner/name.")
    return name


def _stored(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}. Correct it or remove it.") from error
    unknown = next((key for key in stored if key not in KEYS), None)
    if unknown is not None:
        raise UsageError(f"{path} has an unknown key '{unknown}'.{did_you_mean(unknown, KEYS)}")
    return stored
