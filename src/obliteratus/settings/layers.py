"""Blocks named in words: ``all``, ``8``, ``10-20`` or ``0,3,8-16``."""

from obliteratus.errors import UsageError
from obliteratus.settings.edit import EditSettings

ALL = "all"


def layers_named(text: str, count: int) -> tuple[int, ...]:
    """Return the blocks that ``text`` names, of ``count`` that there are, in order.

    Raises:
        UsageError: it names none, or one that there is not.
    """
    blocks = EditSettings(layers=text).blocks if text != ALL else (range(count),)
    if blocks is None:
        raise UsageError(f"'{text}' names no layers here; write all, 8 or 10-20.")
    found = sorted(layer for each in blocks for layer in each)
    if not found or found[-1] >= count:
        raise UsageError(
            f"there is no layer {found[-1] if found else text}: the model has 0 to {count - 1}."
        )
    return tuple(found)
