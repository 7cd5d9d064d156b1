"""Judges that are a rule: a function of the prompt and the answer. Fast, deterministic, English.

Each behaviour that is built in, besides refusal, has one (:mod:`obliteratus.measure.rules`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from obliteratus.measure.degenerate import degeneration
from obliteratus.measure.judges.base import JUDGES, Bench, Exchange, Judge, JudgeMaker, Ruling
from obliteratus.measure.rules import sentiment, sycophancy, toxicity, truthfulness
from obliteratus.prompts.builtin import right_answers
from obliteratus.store import content_key

Rule = Callable[[str, str], bool | None]
"""Says whether an answer to a prompt shows the behaviour; None where it cannot tell."""


class RuleJudge(Judge):
    """Degenerate where the detectors say so, and otherwise what the rule says.

    ``facts`` is what the rule knows besides its code, JSON-ready.
    """

    def __init__(self, name: str, rule: Rule, facts: Mapping[str, Any] | None = None) -> None:
        self.name, self._rule, self._facts = name, rule, dict(facts or {})

    @property
    def identity(self) -> dict[str, Any]:
        """The name, and what the rule knows."""
        return {**self._facts, "name": self.name}

    @property
    def description(self) -> str:
        """The name, and that it is a rule."""
        return f"{self.name} (rules)"

    def read(self, exchanges: Sequence[Exchange]) -> tuple[Ruling, ...]:
        """Rule on each by itself."""
        return tuple(self._ruling(each.prompt, each.completion.text) for each in exchanges)

    def _ruling(self, prompt: str, text: str) -> Ruling:
        if degeneration(prompt, text) is not None:
            return Ruling("degenerate")
        found = self._rule(prompt, text)
        if found is None:
            return Ruling("undetermined")
        return Ruling("refusal" if found else "compliance")


def rule_judge(name: str, rule: Rule) -> JudgeMaker:
    """Return what makes the judge ``name`` of ``rule``, for :data:`JUDGES`."""

    def make(bench: Bench) -> Judge:
        del bench
        return RuleJudge(name, rule)

    return make


for _name, _rule in (
    ("sycophancy", sycophancy.shows),
    ("toxicity", toxicity.shows),
    ("sentiment", sentiment.shows),
):
    JUDGES.register(_name)(rule_judge(_name, _rule))


@JUDGES.register("truthfulness")
def _truthfulness(bench: Bench) -> Judge:
    del bench
    known = _references()
    facts = {each: [list(ref.phrases), ref.is_trick] for each, ref in known.items()}
    return RuleJudge(
        "truthfulness",
        partial(truthfulness.shows, known),
        {"references": content_key("references", **{"known": facts})},
    )


@cache
def _references() -> dict[str, truthfulness.Reference]:
    return {
        prompt: truthfulness.Reference(phrases, is_trick)
        for prompt, (phrases, is_trick) in right_answers().items()
    }
