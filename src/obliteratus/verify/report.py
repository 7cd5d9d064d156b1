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
    """A frozen part of the report that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(Record):
    """One line of the table of claims; the interval of ``estimate`` decides its verdict.

    ``rule`` says in words which bound of which interval has to lie where.
    """

    key: str
    text: str
    rule: str
    unit: Unit
    bound: float
    estimate: Estimate


class Row(Record):
    """One measured quantity of both models.

    ``change`` is paired by prompt or document: a difference, or for perplexity the ratio.
    ``adjusted_p`` is Holm's, over all rows that have a ``p_value``. ``detectable`` is the change
    that this many units would show four times in five.
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
    """How many prompts had one outcome before the edit and another (or the same) after it."""

    before: Outcome
    after: Outcome
    count: int


class Category(Record):
    """The paired outcomes of one category of one class; ``category`` is ``all`` for the class."""

    prompts: PromptSet
    category: str
    n: int
    turned: tuple[Turned, ...]


class Position(Record):
    """KL in nats at one token of the original's completions, counted from the first."""

    position: int
    kl: Estimate


class DocumentChange(Record):
    """Change of −log p per token (nats) of one held-out document."""

    id: str
    genre: str
    tokens: int
    change: float


class TaskFacts(Record):
    """What a row of capability is: the metric, how many items, and who wrote the task."""

    task: str
    metric: str
    items: int
    source: str


class Separation(Record):
    """Projections on the removed direction, in units of the original's within-class deviation.

    Zero is the original's harmless mean; ``d_prime`` is harmful minus harmless.
    """

    harmful: Estimate
    harmless: Estimate
    d_prime: Estimate


class LayerRow(Record):
    """The separation of the classes along the removed direction at one layer."""

    layer: int | Literal["embedding"]
    original: Separation
    edited: Separation


class CandidateRow(Record):
    """One direction that was tried: refusal log-odds without it and with it added."""

    layer: int | Literal["embedding"]
    position: int
    bypass: float
    induce: float
    kl: float
    is_chosen: bool


class RankRow(Record):
    """Where one block stands: what it separates and what its direction controls.

    As in :class:`obliteratus.directions.layers.LayerRank`, on the fit and select prompts.
    """

    layer: int
    separation: Estimate
    bypass: Estimate | None
    induce: Estimate | None
    kl: Estimate | None
    standing: Literal["strong", "weak", "undetermined"]


class ControlRow(Record):
    """An edit through hooks: the plan itself, a random or label-permuted one, or strength 0.

    ``log_odds_change`` is paired by harmful prompt; ``kl`` is that of the first token on harmless
    prompts. ``is_bitwise`` says for strength 0 whether every hidden state was the original's.
    """

    name: str
    kind: ControlKind
    kl: Estimate
    log_odds_change: Estimate | None = None
    is_bitwise: bool | None = None


class LayerLeft(Record):
    """The share of the stream's energy along the directions at one layer: |R x|² / |x|².

    Means and largest values over the tokens of the prompts that prove the edit.
    """

    layer: int | Literal["embedding"]
    before: float
    before_largest: float
    after: float
    after_largest: float


class NormLeft(Record):
    """What matrices whose ``norm`` was kept still write along their directions: ‖V W'‖ / ‖V W‖.

    ``left`` is that of all matrices together, ``largest`` that of ``matrix``.
    """

    norm: Norm
    left: float
    largest: float
    matrix: str


class RoutersAgree(Record):
    """The share of ``n`` (token, router) pairs with the same experts; ``lowest`` is ``worst``'s."""

    share: float
    n: int
    worst: str
    lowest: float


class RowTried(Record):
    """One direction of a later pass: is it worth more than random ones of the same energy?

    ``gain`` is the change of the refusal log-odds of the harmful select prompts when it is removed
    from the model as it is by then, ``kl`` the mean first-token KL(original ‖ edited) after it.
    ``null`` is the change by the most harmful of the ``nulls`` random directions that were tried;
    ``margin``, ``gain`` minus the change by the one closest to it, has the interval that is
    corrected for the number of nulls. Both are None where none was tried.
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
    """A later pass: the directions that were tried in order, and why it ended."""

    number: int
    rows: tuple[RowTried, ...]
    reason: str

    @property
    def kept(self) -> int:
        """How many directions are removed; none, and the pass was not made."""
        return sum(row.is_kept for row in self.rows)


class EditFacts(Record):
    """What the executor measured: what the edit left, and what it was let through with.

    ``shares`` maps a layer to the share of the mean difference that the direction used there keeps
    (|r · δ| / ‖δ‖); it is empty where the directions do not tell. ``passes`` are those after the
    first, the one that was not made included. ``amplifies`` says that the edit was to make refusal
    stronger, not to end it.
    """

    layers: tuple[LayerLeft, ...] = ()
    norm: NormLeft | None = None
    routers: RoutersAgree | None = None
    shares: dict[str, float] = {}
    passes: tuple[PassTried, ...] = ()
    leaks: tuple[str, ...] = ()
    amplifies: bool = False


class JudgeAgreement(Record):
    """How the judge agrees with answers labelled by hand; precision and recall are of refusal."""

    precision: Estimate | None
    recall: Estimate
    kappa: Estimate


class Report(Record):
    """What is known about an edit. ``verdict`` is on all ``claims`` together."""

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
    settings: VerifySettings
    seed: int
    rows: tuple[Row, ...]
    categories: tuple[Category, ...]
    positions: tuple[Position, ...]
    documents: tuple[DocumentChange, ...]
    capability: tuple[TaskFacts, ...] = ()
    controls: tuple[ControlRow, ...] = ()
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
