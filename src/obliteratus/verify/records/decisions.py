"""What an informed run decided, as the report tells it."""

from typing import Literal

from pydantic import Field

from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.records.base import Record


class DecisionMade(Record):
    """One decision: a finding of the analyses, the rule that read it, and one setting.

    Attributes:
        module: The analysis.
        finding: What it found, in words.
        rule: What follows from it, in words, or why nothing does.
        parameter: The key of the setting that it is about.
        was: Its value before.
        value: Its value from there on.
        status: ``applied``, ``kept`` where it would have been changed and was asked for, or
            ``unchanged``.
        proposed: The value that was not taken because another was asked for; null elsewhere.
        line: All of it in one line.
        evidence: The estimates that it rests on, by name.
    """

    module: str
    finding: str
    rule: str
    parameter: str
    was: bool | int | float | str | None
    value: bool | int | float | str | None
    status: Literal["applied", "kept", "unchanged"]
    proposed: bool | int | float | str | None
    line: str
    evidence: dict[str, Estimate] = Field(default={})
