"""The whole examination."""

import importlib
from collections.abc import Callable, Sequence

from obliteratus.doctor import packages
from obliteratus.doctor.finding import Examination, Finding, section


def examine() -> Examination:
    """Look at everything the program needs; nothing is sent anywhere.

    What cannot even be imported is a finding of its own, and the rest is looked at all the same.
    """
    return Examination(
        (
            section("Program", packages.python(), packages.needed()),
            section("Devices", _of("machine", "devices", "threads", "memory")),
            section("Places", _of("places", "caches", "book", "disks")),
            section("Tokens", _of("places", "tokens")),
            section("Extras", packages.extras()),
        )
    )


def _of(module: str, *names: str) -> list[Finding]:
    """Return the findings of functions of a module that imports what may be broken."""
    try:
        imported = importlib.import_module(f"obliteratus.doctor.{module}")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        mend = "pip install --force-reinstall obliteratus"
        return [Finding(module, "broken", f"cannot be looked at: {reason}", mend)]
    found: list[Finding] = []
    for name in names:
        look: Callable[[], Finding | Sequence[Finding]] = getattr(imported, name)
        seen = look()
        found += [seen] if isinstance(seen, Finding) else seen
    return found
