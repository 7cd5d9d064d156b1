"""What an examination found: one fact each, how good it is, and the command that mends it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["good", "slow", "missing", "broken"]
"""``slow``: works and costs time. ``missing``: something that not everybody needs. ``broken``:
the program cannot do its work."""


@dataclass(frozen=True)
class Finding:
    """One fact. ``mend`` is what to type, or else to do; empty where there is nothing to mend."""

    name: str
    status: Status
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Section:
    """Findings about one thing, under a heading."""

    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Examination:
    """All that was found."""

    sections: tuple[Section, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all sections."""
        return tuple(each for section in self.sections for each in section.findings)

    @property
    def is_broken(self) -> bool:
        """Whether something that is needed does not work."""
        return any(each.status == "broken" for each in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "is_broken": self.is_broken,
            "sections": {
                section.title: [asdict(each) for each in section.findings]
                for section in self.sections
            },
        }


def section(title: str, *findings: Finding | Sequence[Finding]) -> Section:
    """Return a section of findings, single ones and lists of them."""
    flat: list[Finding] = []
    for each in findings:
        flat += [each] if isinstance(each, Finding) else each
    return Section(title, tuple(flat))
