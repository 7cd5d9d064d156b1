"""Python and the packages: those that are needed, and what the extras would add."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterable
from typing import cast

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from obliteratus.doctor.finding import Finding

PROGRAM = "obliteratus"
OLDEST = (3, 11)
SHOWN = ("torch", "transformers", "numpy", "safetensors", "huggingface-hub")
"""Needed packages that are named with their versions; the others are counted."""
EXTRAS = {
    "capability": "lm-eval tasks with --capability",
    "harden": "harden, and adapters",
    "quantize": "--quantize 4bit|8bit",
    "judge": "judges behind an address",
    "remote": "--remote",
    "ray": "studies on a cluster",
}
"""Extra -> what it is for."""


def python() -> Finding:
    """Return whether this Python is recent enough."""
    version = platform.python_version()
    if sys.version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        return Finding("Python", "broken", f"{version}, and {wanted} is needed", f"python{wanted}")
    return Finding("Python", "good", f"{version} on {platform.system()} {platform.machine()}")


def needed() -> list[Finding]:
    """Return whether every package that is needed is there, recent enough."""
    wanted = [each for each in _requirements() if _applies(each, None)]
    problems = [finding for each in wanted if (finding := _problem(each)) is not None]
    found = [Finding(PROGRAM, "good", importlib.metadata.version(PROGRAM))]
    broken = {each.name for each in problems}
    shown = [name for name in SHOWN if name not in broken]
    found += [Finding(name, "good", importlib.metadata.version(name)) for name in shown]
    rest = len(wanted) - len(shown) - len(problems)
    return [*found, Finding("others", "good", f"{rest} needed packages are there"), *problems]


def extras() -> list[Finding]:
    """Return which extras are installed, and what the others would add."""
    requirements = list(_requirements())
    found: list[Finding] = []
    for extra, purpose in EXTRAS.items():
        wanted = [
            each for each in requirements if _applies(each, extra) and not _applies(each, None)
        ]
        lacking = [each.name for each in wanted if _version(each.name) is None]
        if lacking:
            text = f"for {purpose}: {', '.join(lacking)} is not installed"
            mend = f"pip install '{PROGRAM}[{extra}]'"
            found.append(Finding(extra, "missing", text, mend))
        else:
            found.append(Finding(extra, "good", f"for {purpose}"))
    return found


def _problem(requirement: Requirement) -> Finding | None:
    """Return what is wrong with a needed package, or None."""
    version = _version(requirement.name)
    mend = f"pip install '{requirement.name}{requirement.specifier}'"
    if version is None:
        return Finding(requirement.name, "broken", "is needed and not installed", mend)
    if not requirement.specifier.contains(version, prereleases=True):
        text = f"{version}, and {requirement.specifier} is needed"
        return Finding(requirement.name, "broken", text, mend)
    return None


def _requirements() -> Iterable[Requirement]:
    return map(Requirement, importlib.metadata.requires(PROGRAM) or ())


def _applies(requirement: Requirement, extra: str | None) -> bool:
    here = cast(dict[str, str], default_environment())
    environment = {**here, "extra": canonicalize_name(extra or "")}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
