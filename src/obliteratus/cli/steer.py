"""``--steer FILE[:STRENGTH]``: talk to a model as if it had been edited along the directions."""

import contextlib
import math
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from obliteratus.errors import UsageError

if TYPE_CHECKING:
    from obliteratus.directions.directions import Directions
    from obliteratus.models.loaded import LoadedModel
    from obliteratus.operator.steering import Dial

COMMAND = "/steer"


def directions_and_strength(text: str) -> "tuple[Directions, float]":
    """Return what ``FILE[:STRENGTH]`` names; without a strength it is that of the directions.

    Raises:
        UsageError: there is no such file.
        StorageError: the file holds no directions.
    """
    from obliteratus.release.directions_file import load_directions

    name, _, last = text.rpartition(":")
    strength = _number(last) if name else None
    path = Path(text if strength is None else name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"there is no file {path} to steer along. Write --steer FILE or --steer FILE:STRENGTH, "
            "with FILE the obliteratus/directions.safetensors of a released folder."
        )
    directions = load_directions(path)
    return directions, directions.strength if strength is None else strength


@contextlib.contextmanager
def steered(
    model: "LoadedModel", found: "tuple[Directions, float] | None"
) -> "Generator[Dial | None]":
    """Steer every write of ``model`` along what was found while the block runs; None does not.

    Raises:
        DirectionError: the directions are of another model.
    """
    if found is None:
        yield None
        return
    from obliteratus.operator.steering import steering

    directions, strength = found
    with steering(model, directions, kind="write_projection", strength=strength) as dial:
        yield dial


def turn(dial: "Dial | None", line: str) -> str:
    """Set the dial as ``/steer NUMBER`` says and return what to tell the user.

    Raises:
        UsageError: nothing is steered, or what follows is no number.
    """
    if dial is None:
        raise UsageError(f"{COMMAND} needs directions: start chat with --steer FILE.")
    strength = _number(line.removeprefix(COMMAND))
    if strength is None:
        raise UsageError(f"'{line}' sets no strength. Write for example {COMMAND} 0.5.")
    dial.strength = strength
    return f"strength {strength:g}"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
