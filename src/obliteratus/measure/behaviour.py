"""A behaviour that can be mapped and edited: its prompts, its judge and its words, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from obliteratus.errors import UsageError
from obliteratus.measure.agreement import Agreement, LabelledAnswer, agreement
from obliteratus.measure.judges.base import JUDGES, Bench, Judge, judge_named
from obliteratus.measure.words import Words
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.registry import Registry
from obliteratus.settings import JudgeSettings, PromptSettings

FIRST_TOKEN_JUDGE = "log_odds"  # rules by the first tokens that are calibrated from openings
ABOUT_REFUSING = frozenset({"keyword", FIRST_TOKEN_JUDGE, "openings", "classifier", "llm"})


@dataclass(frozen=True)
class Behaviour:
    """Everything that is specific to one behaviour.

    In the contrast set the side called ``harmful`` is to bring the behaviour about and the one
    called ``harmless`` is not; an outcome called ``refusal`` is an answer that shows it, and
    ``compliance`` any other. What is printed are the ``words``.

    Attributes:
        name: What ``--behaviour`` takes.
        summary: What it is, in a sentence.
        words: How reports speak of it.
        contrast_set: Loads its prompts.
        judge: The judge that tells whether an answer shows it, by its name in the registry.
        openings: Ways to begin an answer that shows it; log-odds tokens are calibrated from them.
            Empty where the first token does not tell: nothing is decided by log-odds then.
        labelled: Loads answers that were labelled by hand, which the judge is held against. None
            where there are none: the judge's word is taken then, and the report says so.
        lookalikes: Loads prompts that should not bring it about and look as if they did; they are
            asked besides. None where there are none.
        knows_its_prompts: Whether the judge needs to know what was asked: prompts of one's own
            cannot be judged then.
    """

    name: str
    summary: str
    words: Words
    contrast_set: Callable[[], ContrastSet]
    judge: str
    openings: tuple[str, ...] = ()
    labelled: Callable[[], tuple[LabelledAnswer, ...]] | None = None
    lookalikes: Callable[[], tuple[Prompt, ...]] | None = None
    knows_its_prompts: bool = False

    @property
    def judges(self) -> tuple[str, ...]:
        """The names of the judges that can be asked about it, its own first.

        Those of plugins that no behaviour calls its own are about refusing.
        """
        others = [] if not self.openings else [FIRST_TOKEN_JUDGE]
        if self.name == REFUSAL:
            owned = {BEHAVIOURS[each].judge for each in BEHAVIOURS if each != REFUSAL}
            others = [each for each in JUDGES if each not in owned - ABOUT_REFUSING]
        return tuple(dict.fromkeys([self.judge, *others]))

    def check_judge(self, settings: JudgeSettings) -> None:
        """Check the judge's name before anything takes long.

        Raises:
            UsageError: no judge has it, or that judge is about another behaviour.
        """
        name = settings.name or self.judge
        _ = JUDGES[name]
        if name not in self.judges:
            instead = (
                f"Leave verify.judge.name out: '{self.judge}' is the judge of {self.words.noun}."
                if len(self.judges) == 1
                else f"Use {', '.join(self.judges)}."
            )
            raise UsageError(f"the judge '{name}' is not about {self.words.noun}. {instead}")

    def check_prompts(self, settings: PromptSettings) -> None:
        """Check that the prompts of ``settings`` can be judged.

        Raises:
            UsageError: they are not the behaviour's own, and its judge knows no others.
        """
        if self.knows_its_prompts and settings.harmful is not None:
            raise UsageError(
                f"the judge '{self.judge}' knows what is right for the prompts of '{self.name}' "
                "and for no others. Leave prompts.harmful and prompts.harmless out, or add a "
                "behaviour with your own (docs/behaviours.md)."
            )

    def judged_by(self, bench: Bench | None = None) -> Judge:
        """Return the judge that is asked for, or else the behaviour's own.

        Raises:
            UsageError: no judge has that name, it is about another behaviour, or it misses a
                setting.
            MeasurementError: what it needs cannot be had.
        """
        bench = bench or Bench()
        self.check_judge(bench.settings)
        return judge_named(bench.settings.name or self.judge, bench)

    def agreement(self, judge: Judge) -> Agreement | None:
        """Return how ``judge`` does on the labelled answers that no rule of it was adjusted on.

        None where the behaviour has no labelled answers.

        Raises:
            MeasurementError: they have one label alone, or the judge fails.
        """
        if self.labelled is None:
            return None
        return agreement(judge, tuple(each for each in self.labelled() if each.part == "check"))


REFUSAL = "refusal"
BEHAVIOURS: Registry[Behaviour] = Registry("behaviour", "obliteratus.measure.behaviours")
