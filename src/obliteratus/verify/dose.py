"""How strong an edit may be: its effects at shares of its strengths, and the largest that passes.

Everything here is measured on the select prompts and on documents kept for it. A strength that was
chosen on the test split would make the claims on that split true by choice.
"""

from collections.abc import Callable, Sequence

from obliteratus.events import Deviation, track
from obliteratus.measure.documents import Document, select_text
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.store import Store
from obliteratus.verify.claims import divergence_claim, perplexity_claim
from obliteratus.verify.effects import EFFECT_PROMPTS, EffectBench, log_odds_change, norms_ignored
from obliteratus.verify.records.effects import Dose, DoseRow

STEPS = 20
"""Shares of a plan are multiples of 1/20: strengths closer than that differ by less than noise."""
QUARTERS = (5, 10, 15, 20)
"""Steps that are always measured: the picture has a line through them."""


def measure_dose(
    model: LoadedModel,
    plan: EditPlan,
    prompts: ContrastSet,
    *,
    tokens: RefusalTokens | None = None,
    documents: Sequence[Document] | None = None,
    count: int = EFFECT_PROMPTS,
    system: str | None = None,
    seed: int = 0,
    store: Store | None = None,
) -> tuple[Dose, tuple[Deviation, ...]]:
    """Measure shares of ``plan`` on ``model``, which must be the untouched original.

    ``prompts`` are those of the select split, at most ``count`` of each class; ``documents`` are
    those of :func:`obliteratus.measure.documents.select_text` unless they are given. A share passes
    where the report's own claims on first-token KL and perplexity would be supported by these.
    Every row is measured, through hooks, and none is interpolated. Forward passes only. Hooks
    cannot keep norms: where the plan does, that is a deviation. With a ``store``, effects that were
    measured before are taken from there.

    Raises:
        MeasurementError: there are no prompts or documents, or logits are NaN.
        EditError: hooks cannot carry the plan out.
    """
    bench = EffectBench(model, prompts, tokens=tokens, count=count, system=system, store=store)
    doses = _Doses(bench, plan, documents or select_text(), seed)
    steps = (0, *QUARTERS)
    for step in track(steps, task="doses", total=len(steps), unit="plans"):
        doses.at(step)
    largest = largest_passing(lambda step: doses.at(step).passes)
    share = None if largest is None else largest / STEPS
    dose = Dose(
        rows=tuple(doses.rows[step] for step in sorted(doses.rows)),
        strength=plan.strength_range,
        largest=share,
        largest_strength=None if share is None else plan.scaled(share).strength_range,
    )
    done = "the doses, and the largest that passes, without it"
    return dose, norms_ignored(plan, where="dose", done=done)


def largest_passing(passes: Callable[[int], bool]) -> int | None:
    """Return the largest step of 1/:data:`STEPS` found to pass; None where none down to 1 does.

    After the :data:`QUARTERS` the gap between the largest that passes and the next one, which does
    not, is bisected: at most seven steps are asked for. That a weaker edit passes where a stronger
    one does decides only where to look; the step returned has passed itself.
    """
    found = {step: passes(step) for step in QUARTERS}
    low = max((step for step, is_good in found.items() if is_good), default=0)
    high = min((step for step in QUARTERS if step > low), default=low)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low or None


class _Doses:
    """Rows, each measured when it is first asked for."""

    def __init__(
        self, bench: EffectBench, plan: EditPlan, documents: Sequence[Document], seed: int
    ) -> None:
        self.rows: dict[int, DoseRow] = {}
        self._bench = bench
        self._plan = plan
        self._documents = documents
        self._seed = seed
        original = plan.scaled(0.0)
        self._before = (bench.effect(original), bench.likelihood(original, documents))

    def at(self, step: int) -> DoseRow:
        """Return the row of ``step``."""
        if step not in self.rows:
            self.rows[step] = self._measured(step / STEPS)
        return self.rows[step]

    def _measured(self, share: float) -> DoseRow:
        scaled, (before, unread) = self._plan.scaled(share), self._before
        after, read = self._bench.effect(scaled), self._bench.likelihood(scaled, self._documents)
        kl = bootstrap_mean(after.kl.numpy(), seed=self._seed)
        return DoseRow(
            share=share,
            kl=divergence_claim(kl).estimate,
            perplexity=perplexity_claim(unread.nll, read.nll, unread.tokens).estimate,
            log_odds_change=log_odds_change(before, after, seed=self._seed),
        )
