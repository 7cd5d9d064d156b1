"""A group of settings: frozen, and without unknown keys."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    ``is_value`` says that ``--set`` may give the whole group at once, as a YAML mapping.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    is_value: ClassVar[bool] = False
