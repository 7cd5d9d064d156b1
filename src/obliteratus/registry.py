"""Find families, extractors, judges and other plugins by name, without a list to maintain.

A built-in registers itself with a decorator in its own file; another package does the same in a
module named by its entry point in the group ``obliteratus.plugins``. Nothing is imported before a
name is first looked up.
"""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from obliteratus.errors import UsageError, did_you_mean

T = TypeVar("T")
PLUGIN_GROUP = "obliteratus.plugins"


class Registry(Generic[T]):
    """A mapping from names to registered values of one kind, filled by importing ``package``."""

    def __init__(self, kind: str, package: str) -> None:
        """``kind`` is the word used in errors; ``package`` holds one module per built-in."""
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._is_loaded = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under every one of ``names``."""

        def file(entry: T) -> T:
            for name in names:
                if self._entries.get(name, entry) is not entry:
                    raise UsageError(f"two {self.kind}s are called '{name}'; rename one of them.")
                self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            UsageError: there is none; the message gives the nearest name.
        """
        self._load()
        if name not in self._entries:
            raise UsageError(f"no {self.kind} called '{name}'.{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
            point.load()
