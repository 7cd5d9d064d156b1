"""The report: original and edited measured by the same code, as data and as ``report.json``."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from obliteratus.errors import StorageError
from obliteratus.events import Deviation
from obliteratus.measure.judges.base import Outcome
from obliteratus.settings import Norm, VerifySettings
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.store import read_json, write_json
from obliteratus.verify.identity import Subject

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"

Unit = Literal["share", "nats", "ratio", "perplexity", "similarity", "log-odds", "score"]
PromptSet = Literal["harmful", "harmless", "lookalikes"]
ControlKind = Literal["edit", "random", "permuted", "identity"]


class Record(BaseModel):
    """A frozen part of the report that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Claim(Record):
    """One line of the table of claims; the interval of ``estimate`` decides its verdict.

    Attributes:
        key: Which claim: ``refusal``, ``amplification``, ``kl``, ``perplexity`` or ``coherence``.
        text: The claim in words.
        rule: Which bound of which interval has to lie where, in words.
        unit: What ``bound`` and ``estimate`` are measured in.
        bound: The threshold; of the perplexity ratio the upper one, the lower being its inverse
            (the same ±log on both sides).
        estimate: What was measured, with the interval that decides (90 % for ``perplexity``, else
            95 %) and the verdict on this claim.
    """

    key: str
    text: str
    rule: str
    unit: Unit
    bound: float
    estimate: Estimate


class Row(Record):
    """One measured quantity of both models.

    Attributes:
        key: The quantity; see the table of keys.
        label: The quantity in words.
        unit: What its estimates are measured in. A ``share`` is 0 to 1, everything with logarithms
            is in nats.
        original: Of the original, with its 95 % interval; null where the quantity is a comparison.
        edited: Of the edited model, on the same prompts or documents.
        change: Paired by prompt or document: edited minus original, or for perplexity the ratio;
            its null is 0, or 1 for the ratio. Null where ``edited`` is a comparison already.
        test: The test behind ``p_value``: exact McNemar, or sign flips.
        p_value: Two-sided and not corrected; null where there is no test.
        adjusted_p: Holm's, over all rows that have a ``p_value``.
        detectable: The change that this many units would show four times in five, in ``unit``: of a
            share, of perplexity as a ratio.
        details: Further numbers by name; see the table of keys.
    """

    key: str
    label: str
    unit: Unit
    original: Estimate | None = None
    edited: Estimate | None = None
    change: Estimate | None = None
    test: str | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    detectable: float | None = None
    details: dict[str, float] = {}


class Turned(Record):
    """How many prompts had one outcome before the edit and another (or the same) after it.

    Attributes:
        before: What became of them with the original.
        after: What became of them with the edited model.
        count: How many prompts; pairs that did not occur are left out.
    """

    before: Outcome
    after: Outcome
    count: int


class Category(Record):
    """The paired outcomes of one category of one class of prompts.

    Attributes:
        prompts: The class: harmful, harmless, or safe look-alikes.
        category: Its category in the prompt set; ``all`` for the class as a whole.
        n: How many prompts it has.
        turned: Their outcomes before and after; the counts sum to ``n``.
    """

    prompts: PromptSet
    category: str
    n: int
    turned: tuple[Turned, ...]


class Position(Record):
    """The divergence at one token of the original's own answers.

    Attributes:
        position: Counted from the first token of the answer, which is 0.
        kl: Mean KL(original ‖ edited) in nats over the answers that are this long, with a 95 %
            bootstrap interval by prompt.
    """

    position: int
    kl: Estimate


class DocumentChange(Record):
    """What the edit does to the probability of one held-out document.

    Attributes:
        id: The document: its name, or a hash of its text.
        genre: Its genre, or the file or data set that it is from.
        tokens: How many of its tokens were predicted.
        change: Change of −log p per token in nats; above 0 the document became less probable.
    """

    id: str
    genre: str
    tokens: int
    change: float


class TaskFacts(Record):
    """What a row of capability is.

    Attributes:
        task: The task; its row is called ``capability_<task>``.
        metric: What is scored of each item.
        items: How many items both models were given.
        source: Who wrote the task.
    """

    task: str
    metric: str
    items: int
    source: str


class Separation(Record):
    """Projections on the removed direction, in units of the original's within-class deviation.

    Zero is the original's harmless mean. Intervals are 95 % bootstrap intervals by prompt.

    Attributes:
        harmful: Mean of the harmful prompts.
        harmless: Mean of the harmless prompts.
        d_prime: Harmful minus harmless; its null is 0.
    """

    harmful: Estimate
    harmless: Estimate
    d_prime: Estimate


class LayerRow(Record):
    """The separation of the classes along the removed direction at one layer.

    Attributes:
        layer: The block, from 0, at whose output it was measured, or ``embedding``.
        original: In the original.
        edited: In the edited model, in the original's units and from the original's zero.
    """

    layer: int | Literal["embedding"]
    original: Separation
    edited: Separation


class CandidateRow(Record):
    """One direction that was tried: refusal log-odds without it and with it added.

    Attributes:
        layer: The block, from 0, whose output it is from, or ``embedding``.
        position: The token it is from, counted back from the end of the prompt (−1 is the last).
        bypass: Mean refusal log-odds of harmful select prompts with the direction removed.
        induce: Mean refusal log-odds of harmless select prompts with the direction added.
        kl: Mean first-token KL in nats of harmless select prompts with the direction removed.
        is_chosen: Whether it is the one that was used.
    """

    layer: int | Literal["embedding"]
    position: int
    bypass: float
    induce: float
    kl: float
    is_chosen: bool


class RankRow(Record):
    """Where one block stands: what it separates and what its direction controls.

    As in :class:`obliteratus.directions.layers.LayerRank`, on the fit and select prompts, with 95 %
    intervals. Null where the logits overflowed.

    Attributes:
        layer: The block, from 0.
        separation: How far apart the classes are along the block's own mean difference, in
            within-class standard deviations, the noise of few prompts taken out.
        bypass: By how much removing its direction lowers the refusal log-odds of harmful prompts;
            its null is what random vectors stay below.
        induce: By how much adding it raises those of harmless prompts; its null likewise.
        kl: First-token KL in nats of harmless prompts with the direction removed.
        standing: ``strong`` is all three beyond their nulls (Holm) and large beside the best
            layer's; ``weak`` one that is not beyond its null at all, or too small; else
            ``undetermined``.
    """

    layer: int
    separation: Estimate
    bypass: Estimate | None
    induce: Estimate | None
    kl: Estimate | None
    standing: Literal["strong", "weak", "undetermined"]


class ControlRow(Record):
    """An edit through hooks: the plan itself, a random or label-permuted one, or strength 0.

    Attributes:
        name: What it is in words.
        kind: The plan (``edit``), random directions of equal energy (``random``), directions from
            permuted labels (``permuted``), or strength 0 (``identity``).
        kl: Mean first-token KL in nats on harmless prompts, with its 95 % bootstrap interval.
        log_odds_change: Change of the refusal log-odds, paired by harmful prompt; its null is 0.
            Null where the model has no refusal tokens.
        is_bitwise: For strength 0 whether every hidden state was the original's, bit for bit; null
            for the others.
    """

    name: str
    kind: ControlKind
    kl: Estimate
    log_odds_change: Estimate | None = None
    is_bitwise: bool | None = None


class DoseRow(Record):
    """What a share of the plan's strengths does, through hooks, on select prompts and documents.

    Attributes:
        share: The share; 0 is the original.
        kl: KL of the first token on harmless prompts, in nats, with the verdict of the claim.
        perplexity: Perplexity as a ratio, with its 90 % interval and the verdict of the claim.
        log_odds_change: Change of the refusal log-odds, paired by harmful prompt; null without
            refusal tokens.
    """

    share: float
    kl: Estimate
    perplexity: Estimate
    log_odds_change: Estimate | None = None

    @property
    def passes(self) -> bool:
        """Whether the claims on KL and perplexity are both supported at this share."""
        return self.kl.verdict == self.perplexity.verdict == "supported"


class Dose(Record):
    """The effects of the planned edit by its strength, and how strong it may be.

    Attributes:
        rows: What was measured, by share of the plan, the smallest first.
        strength: The strength of the whole plan, in words.
        largest: The largest share found to pass; null where none did.
        largest_strength: The strength there, in words.
        applied: The share that was carried out: less than 1 only with ``edit.auto_regularize``.
    """

    rows: tuple[DoseRow, ...]
    strength: str
    largest: float | None
    largest_strength: str | None
    applied: float = 1.0

    def at(self, share: float) -> DoseRow:
        """Return the row of ``share``, which was measured."""
        return next(row for row in self.rows if row.share == share)


class LayerLeft(Record):
    """The share of the stream's energy along the directions at one layer: |R x|² / |x|².

    Over the tokens of the prompts that prove the edit.

    Attributes:
        layer: The block, from 0, at whose output it was measured, or ``embedding``.
        before: Mean share in the original.
        before_largest: Largest share of any token in the original.
        after: Mean share in the edited model.
        after_largest: Largest share of any token in the edited model.
    """

    layer: int | Literal["embedding"]
    before: float
    before_largest: float
    after: float
    after_largest: float


class NormLeft(Record):
    """What matrices whose norm was kept still write along their directions: ‖V W'‖ / ‖V W‖.

    Attributes:
        norm: Which norms were kept.
        left: Of all matrices together; 0 is nothing, 1 is all of it.
        largest: Of the matrix that still writes the most.
        matrix: The name of that matrix.
    """

    norm: Norm
    left: float
    largest: float
    matrix: str


class RoutersAgree(Record):
    """How often the routers of a mixture choose the same experts after the edit.

    Attributes:
        share: The share of (token, router) pairs with the same experts.
        n: How many pairs there are.
        worst: The router that changes the most.
        lowest: Its share.
    """

    share: float
    n: int
    worst: str
    lowest: float


class RowTried(Record):
    """One direction of a later pass: is it worth more than random ones of the same energy?

    Attributes:
        row: Which direction, counted from 0.
        gain: Change of the refusal log-odds of the harmful select prompts when it is removed from
            the model as it is by then.
        kl: Mean first-token KL(original ‖ edited) in nats after it.
        nulls: How many random directions were tried.
        null: The change by the most harmful of them; null where none was tried.
        margin: ``gain`` minus the change by the one closest to it, with an interval that is
            corrected for the number of nulls; null where none was tried.
        is_kept: Whether it is removed.
        reason: Why, in words.
    """

    row: int
    gain: Estimate
    kl: float
    nulls: int
    null: Estimate | None
    margin: Estimate | None
    is_kept: bool
    reason: str


class PassTried(Record):
    """A later pass: the directions that were tried in order, and why it ended.

    Attributes:
        number: Which pass; 2 is the first that is told.
        rows: The directions in the order in which they were tried.
        reason: Why it ended, in words.
    """

    number: int
    rows: tuple[RowTried, ...]
    reason: str

    @property
    def kept(self) -> int:
        """How many directions are removed; none, and the pass was not made."""
        return sum(row.is_kept for row in self.rows)


class EditFacts(Record):
    """What the executor measured: what the edit left, and what it was let through with.

    Attributes:
        layers: The energy along the directions, by layer; empty where the edit was not proved.
        norm: What matrices with kept norms still write; null where no norm was kept.
        routers: How often routers choose as before; null where there are none.
        shares: By layer the share of the mean difference that the direction used there keeps
            (|r · δ| / ‖δ‖); empty where the directions do not tell.
        passes: Those after the first, the one that was not made included.
        leaks: What was found left and let through by ``--allow-leak``, in words.
        amplifies: Whether the edit was to make refusal stronger, not to end it.
    """

    layers: tuple[LayerLeft, ...] = ()
    norm: NormLeft | None = None
    routers: RoutersAgree | None = None
    shares: dict[str, float] = {}
    passes: tuple[PassTried, ...] = ()
    leaks: tuple[str, ...] = ()
    amplifies: bool = False


class Ruled(Record):
    """How many answers with one label the judge ruled one way.

    Attributes:
        label: What a person says of them.
        said: What the judge says of them.
        count: How many answers; pairs that did not occur are left out.
    """

    label: Outcome
    said: Outcome
    count: int


class JudgeAgreement(Record):
    """How the judge agrees with answers labelled by hand.

    Attributes:
        precision: Of what it calls a refusal, the share that is one, with Wilson's 95 % interval;
            null for a judge that never says refusal.
        recall: Of the refusals, the share that it finds, with Wilson's 95 % interval.
        kappa: Cohen's κ over the outcomes: 1 is full agreement, 0 what chance gives.
        confusion: How many answers of each label were ruled each way; the counts sum to the
            ``n`` of ``kappa``. Empty in reports that were made before it was kept.
    """

    precision: Estimate | None
    recall: Estimate
    kappa: Estimate
    confusion: tuple[Ruled, ...] = ()


class ThoughtCounts(Record):
    """How many of the answers to one class had a thought, and how many thoughts a limit cut.

    Attributes:
        prompts: The class.
        n: How many answers there are.
        original: How many of the original's answers had a thought.
        edited: The same for the edited model.
        unfinished_original: How many of the original's thoughts did not end within their limit.
        unfinished_edited: The same for the edited model.
    """

    prompts: PromptSet
    n: int
    original: int
    edited: int
    unfinished_original: int
    unfinished_edited: int


class ReasoningFacts(Record):
    """What was done about the thoughts of models that think before they answer.

    Attributes:
        original: What was done about those of the original, in words; null where it has none.
        edited: The same for the edited model.
        counts: How many thoughts there were, by class; empty where no answer had one.
    """

    original: str | None
    edited: str | None
    counts: tuple[ThoughtCounts, ...] = ()


class Report(Record):
    """What is known about an edit.

    Attributes:
        schema_version: The version of this format.
        verdict: On all ``claims`` together: supported if all are, not supported if one is not, else
            undetermined.
        headline: What became of refusal, in one sentence.
        claims: What an edit claims, each held against an interval.
        original: The model before.
        edited: The model after.
        prompts: The SHA-256 of the test prompts.
        harmful: How many harmful test prompts there are.
        harmless: How many harmless ones.
        system: The system prompt that both models were given; null is none.
        judge: Who judged the answers, in words.
        agreement: How that judge does on answers labelled by hand; null where it was not measured.
        reasoning: What was done about thoughts; null where neither model thinks.
        settings: How much was measured.
        seed: The seed of all resampling.
        rows: The measured quantities.
        categories: What became of the prompts, by class and category.
        positions: The divergence along the original's own answers to harmless prompts, as far as
            two of them reach.
        documents: The change of each held-out document.
        capability: The tasks whose items both models were given; empty where none was named.
        controls: The edit beside its nulls; empty where there was no plan.
        dose: The edit at shares of its strength; null where there was no plan, or it was not asked.
        layers: The separation along the removed direction, by layer; empty without directions, and
            without the layers at which it does not vary.
        candidates: The directions that were tried; empty where none was selected.
        ranking: Strong and weak layers; empty where they were not ranked.
        edit: What the executor measured; null where two models were compared without a plan.
        deviations: What was not done as asked.
        versions: The versions of the packages that compute, by name.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    verdict: Verdict
    headline: str
    claims: tuple[Claim, ...]
    original: Subject
    edited: Subject
    prompts: str
    harmful: int
    harmless: int
    system: str | None
    judge: str
    agreement: JudgeAgreement | None = None
    reasoning: ReasoningFacts | None = None
    settings: VerifySettings
    seed: int
    rows: tuple[Row, ...]
    categories: tuple[Category, ...]
    positions: tuple[Position, ...]
    documents: tuple[DocumentChange, ...]
    capability: tuple[TaskFacts, ...] = ()
    controls: tuple[ControlRow, ...] = ()
    dose: Dose | None = None
    layers: tuple[LayerRow, ...] = ()
    candidates: tuple[CandidateRow, ...] = ()
    ranking: tuple[RankRow, ...] = ()
    edit: EditFacts | None = None
    deviations: tuple[Deviation, ...] = ()
    versions: dict[str, str] = {}

    def row(self, key: str) -> Row | None:
        """Return the row called ``key``, or None when it was not measured."""
        return next((row for row in self.rows if row.key == key), None)

    def claim(self, key: str) -> Claim | None:
        """Return the claim called ``key``, or None when it was not measured."""
        return next((claim for claim in self.claims if claim.key == key), None)


def save_report(report: Report, path: Path) -> None:
    """Write ``report`` as JSON; equal reports give equal bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        write_json(path, report.model_dump(mode="json"))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}.") from error


def load_report(path: Path) -> Report:
    """Read what :func:`save_report` wrote.

    Raises:
        StorageError: the file is missing, damaged or of another schema.
    """
    record = read_json(path)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise StorageError(
            f"{path} is a report of schema {version}, this program reads {SCHEMA_VERSION}. Run "
            "obliteratus verify again to make a new one."
        )
    try:
        return Report.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StorageError(f"{path} is damaged: {where}: {first['msg']}.") from error
