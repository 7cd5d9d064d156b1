"""The report: original and edited measured by the same code, as data and as ``report.json``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from obliteratus.errors import StorageError
from obliteratus.events import Deviation
from obliteratus.measure.outcomes import Outcome
from obliteratus.measure.words import REFUSAL, Words
from obliteratus.settings import VerifySettings
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.words import Unit
from obliteratus.store import read_json, write_json
from obliteratus.verify.identity import Subject
from obliteratus.verify.records.base import Record
from obliteratus.verify.records.decisions import DecisionMade
from obliteratus.verify.records.edit import EditFacts
from obliteratus.verify.records.effects import ControlRow, Dose
from obliteratus.verify.records.judging import JudgeAgreement, PromptSet, ReasoningFacts
from obliteratus.verify.records.layers import CandidateRow, LayerRow, RankRow
from obliteratus.verify.records.prompts import PromptOutcomes

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"


class Claim(Record):
    """One line of the table of claims; the interval of ``estimate`` decides its verdict.

    Attributes:
        key: Which claim: ``refusal``, ``amplification``, ``kept``, ``kl``, ``perplexity`` or
            ``coherence``.
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
    details: dict[str, float] = Field(default={})


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


class Report(Record):
    """What is known about an edit.

    Attributes:
        schema_version: The version of this format.
        verdict: On all ``claims`` together: supported if all are, not supported if one is not, else
            undetermined.
        headline: What became of the behaviour, in one sentence.
        behaviour: What was looked for in the answers: ``refusal``, or another by its name. What
            shows it is called ``refusal`` in outcomes and keys, and the prompts that are to bring
            it about ``harmful``, whichever it is.
        words: How the behaviour and its prompts are spoken of.
        claims: What an edit claims, each held against an interval.
        original: The model before.
        edited: The model after.
        prompts: The SHA-256 of the test prompts.
        harmful: How many test prompts are to bring the behaviour about.
        harmless: How many are their partners.
        system: The system prompt that both models were given; null is none.
        judge: Who judged the answers, in words.
        agreement: How that judge does on answers labelled by hand; null where it was not measured.
        reasoning: What was done about thoughts; null where neither model thinks.
        settings: How much was measured.
        seed: The seed of all resampling.
        rows: The measured quantities.
        categories: What became of the prompts, by class and category.
        outcomes: What became of each test prompt, by class; empty in reports that were made before
            it was kept.
        divergences: KL(original ‖ edited) in nats of the first token of the answer to each harmless
            test prompt, in the order of the set; empty likewise.
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
        decisions: What analyses of the original decided before the edit, in order; empty where the
            run was not informed.
        edit: What the executor measured; null where two models were compared without a plan.
        deviations: What was not done as asked.
        versions: The versions of the packages that compute, by name.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    verdict: Verdict
    headline: str
    behaviour: str = "refusal"
    words: Words = REFUSAL
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
    outcomes: tuple[PromptOutcomes, ...] = ()
    divergences: tuple[float, ...] = ()
    capability: tuple[TaskFacts, ...] = ()
    controls: tuple[ControlRow, ...] = ()
    dose: Dose | None = None
    layers: tuple[LayerRow, ...] = ()
    candidates: tuple[CandidateRow, ...] = ()
    ranking: tuple[RankRow, ...] = ()
    decisions: tuple[DecisionMade, ...] = ()
    edit: EditFacts | None = None
    deviations: tuple[Deviation, ...] = ()
    versions: dict[str, str] = Field(default={})

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
