"""A last look at what is to leave: no name of this user or machine may be in it."""

import getpass
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from obliteratus.community.contribution import Contribution
from obliteratus.errors import UsageError
from obliteratus.store.secrets import without_secrets

SHORTEST = 3  # letters: a shorter name is a part of too many words
GENERIC = frozenset(
    ("root", "user", "users", "admin", "home", "guest", "runner", "localhost", "local", "nobody",
     "docker", "ubuntu", "debian", "codespace", "vscode", "jovyan", "obliteratus")
)  # fmt: skip
"""Names of users and hosts that name nobody."""
PUBLIC = "results.original.name"
"""The name that the model has on the Hub or in the catalogue; its owner may be the sender."""


def own_names() -> frozenset[str]:
    """Return how this user and this machine are called, in lower case, without generic names."""
    host = platform.node().lower()
    found = {host, host.split(".")[0], Path.home().name.lower(), _user().lower()}
    return frozenset(each for each in found if len(each) >= SHORTEST and each not in GENERIC)


def check_private(contribution: Contribution) -> None:
    """Check that no text in ``contribution`` holds a name of this user or machine, or a credential.

    The schema lets no text through, but a method or a plugin may be called after somebody.

    Raises:
        UsageError: one does; it is named by its place.
    """
    names = own_names()
    for place, text in texts(contribution.model_dump(mode="json")):
        if place == PUBLIC:
            continue
        words = {text.lower(), *re.split(r"[^a-z0-9]+", text.lower())}
        found = sorted(names & words)
        if found or without_secrets(text) != text:
            what = f"the name '{found[0]}' of this user or machine" if found else "a credential"
            raise UsageError(
                f"{place} holds {what}, so nothing was sent or written. Repeat the run with "
                "another name there, or leave it uncontributed."
            )


def texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a JSON-ready value with its place; keys that may be chosen as well."""
    if isinstance(value, dict):
        for key, inner in value.items():
            below = f"{place}.{key}" if place else str(key)
            yield below, str(key)
            yield from texts(inner, below)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts(inner, f"{place}.{number}")
    elif isinstance(value, str):
        yield place, value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no entry
        return ""
