"""Every error a user can meet, and the nearest-name helper that they share.

``exit_code`` is what the command line returns: 2 when the request itself is wrong (a name, a key,
a file, a value), 1 when a well-formed request could not be carried out.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class ObliteratusError(Exception):
    """The base of all errors; its message says what, how much, and what to do next."""

    exit_code: ClassVar[int] = 1


class UsageError(ObliteratusError):
    """What was typed is wrong: an unknown name or key, a missing or malformed file or value."""

    exit_code: ClassVar[int] = 2


class PromptError(UsageError):
    """A prompt file or set cannot be used as asked."""


class ModelSourceError(ObliteratusError):
    """A model could not be obtained: no network, gated, a wrong hash, a damaged file."""


class HubError(ObliteratusError):
    """The Hub refused what was to be written to it or read from a data set, or is out of reach."""


class UnsupportedArchitectureError(ObliteratusError):
    """No family file describes the model, or it leaves part of the model undescribed."""


class DirectionError(ObliteratusError):
    """Directions are missing, degenerate, not orthonormal or of the wrong width."""


class EditError(ObliteratusError):
    """An edit cannot be carried out exactly as planned."""


class LeakError(EditError):
    """After a full-strength edit a component along the removed basis is left in the stream.

    ``finding`` is what was found, without ``advice`` on what to do next.
    """

    def __init__(self, finding: str, advice: str = "") -> None:
        super().__init__(f"{finding} {advice}".rstrip())
        self.finding = finding


class MeasurementError(ObliteratusError):
    """A measurement has no meaning: nothing to measure, NaN logits, different vocabularies."""


class NoRefusalTokensError(MeasurementError):
    """The model has no first tokens that tell its refusals from its answers."""


class StorageError(ObliteratusError):
    """Reading or writing files failed: disk full, an existing folder, a damaged record."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest of ``choices``, else the list of them.

    The result begins with a space, so that it can be appended to any message.
    """
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
