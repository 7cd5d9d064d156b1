"""From findings to settings: each decision is *finding → rule → parameter*, with its evidence.

:func:`decide` is pure: the same findings and settings give the same decisions. A rule proposes; a
proposal is not carried out where its parameter was asked for (``informed.keep``), or where the
settings that it would make are refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from obliteratus.analysis.findings import Findings
from obliteratus.errors import UsageError, did_you_mean
from obliteratus.measure.words import Words
from obliteratus.pipeline.refinement import check_extractor
from obliteratus.settings import RunSettings, settings_from, valid_keys
from obliteratus.statistics.estimate import Estimate
from obliteratus.verify.records.decisions import DecisionMade

Status = Literal["applied", "kept", "unchanged"]


@dataclass(frozen=True)
class Seen:
    """What the rules read: findings by name, and why others are missing.

    ``by_category`` says whether the fit prompts are pairs, each with a category.
    """

    findings: Mapping[str, Findings]
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    by_category: bool = True


@dataclass(frozen=True)
class Proposal:
    """What a rule makes of a finding: a value for ``parameter``, or None to leave it as it is.

    ``finding`` and ``rule`` are words; ``rule`` says why the parameter is left where it is.
    """

    finding: str
    rule: str
    parameter: str
    value: Any = None
    evidence: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])


@dataclass(frozen=True)
class Decision:
    """One decision as it is printed and recorded.

    ``was`` and ``value`` are the parameter before and after, JSON-ready. ``status`` is ``applied``,
    ``kept`` (a rule would have changed it to ``proposed``, and it was asked for) or ``unchanged``.
    """

    module: str
    finding: str
    rule: str
    parameter: str
    was: Any
    value: Any
    status: Status
    proposed: Any = None
    evidence: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])

    @property
    def line(self) -> str:
        """Finding → rule → parameter, in words."""
        return f"{self.finding} → {self.rule} → {self._outcome}"

    @property
    def _outcome(self) -> str:
        was = _shown(self.was)
        if self.status == "applied":
            return f"{self.parameter}={_shown(self.value)} (was {was})"
        if self.status == "kept":
            wanted = _shown(self.proposed)
            return f"{self.parameter} stays {was}, not {wanted}: kept because it was asked for"
        return f"{self.parameter} stays {was}"

    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        return {
            "module": self.module,
            "finding": self.finding,
            "rule": self.rule,
            "parameter": self.parameter,
            "was": self.was,
            "value": self.value,
            "status": self.status,
            "proposed": self.proposed,
            "evidence": {name: each.as_json() for name, each in self.evidence.items()},
        }

    def told(self, words: Words) -> DecisionMade:
        """Return this as the report tells it, in the ``words`` of the behaviour."""
        return DecisionMade(
            module=self.module,
            finding=words.reworded(self.finding),
            rule=words.reworded(self.rule),
            parameter=self.parameter,
            was=self.was,
            value=self.value,
            status=self.status,
            proposed=self.proposed,
            line=words.reworded(self.line),
            evidence=dict(self.evidence),
        )


def settle(
    module: str, proposals: Iterable[Proposal], settings: RunSettings
) -> tuple[tuple[Decision, ...], RunSettings]:
    """Return what becomes of ``proposals``, in order, and the settings after them."""
    made: list[Decision] = []
    for proposal in proposals:
        decision, settings = _settled(module, proposal, settings)
        made.append(decision)
    return tuple(made), settings


def applied(settings: RunSettings, decisions: Sequence[Decision]) -> RunSettings:
    """Return ``settings`` as ``decisions`` leave them."""
    for each in decisions:
        if each.status == "applied":
            settings = with_value(settings, each.parameter, each.value)
    return settings


def with_value(settings: RunSettings, key: str, value: Any) -> RunSettings:
    """Return ``settings`` with the one under the dotted ``key`` replaced.

    Raises:
        UsageError: the settings refuse it, or what it is used for does.
    """
    values = settings.model_dump(mode="json")
    *sections, name = key.split(".")
    target = values
    for section in sections:
        target = target[section]
    target[name] = value
    found = settings_from(values)
    check_extractor(found)
    return found


def check_keep(settings: RunSettings) -> None:
    """Check that every key of ``informed.keep`` exists.

    Raises:
        UsageError: one does not; the nearest is named.
    """
    known = valid_keys()
    for key in settings.informed.keep:
        if key not in known:
            raise UsageError(f"informed.keep names no setting '{key}'.{did_you_mean(key, known)}")


def _settled(
    module: str, proposal: Proposal, settings: RunSettings
) -> tuple[Decision, RunSettings]:
    was = _value_of(settings, proposal.parameter)
    value, rule = proposal.value, proposal.rule
    status: Status = "unchanged"
    after, proposed = settings, None
    if value is not None and value != was:
        if proposal.parameter in settings.informed.keep:
            status, proposed = "kept", value
        else:
            try:
                after = with_value(settings, proposal.parameter, value)
                status = "applied"
            except UsageError as error:
                rule = f"{rule}, which is refused ({error})"
    decision = Decision(
        module=module,
        finding=proposal.finding,
        rule=rule,
        parameter=proposal.parameter,
        was=was,
        value=value if status == "applied" else was,
        status=status,
        proposed=proposed,
        evidence=proposal.evidence,
    )
    return decision, after


def _value_of(settings: RunSettings, key: str) -> Any:
    value: Any = settings.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "as in the first pass"
    return str(value).lower() if isinstance(value, bool) else str(value)
