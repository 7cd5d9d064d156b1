"""What is kept of a run: an allow-list, so that nothing else can get into it.

:class:`Record` is what may leave this machine one day: numbers, hashes and names from a closed
alphabet. It has no field that could hold a prompt, a completion, a path, an address or a name of a
person or host. :class:`Local` is what only this machine needs: what was typed, and where the result
lies. Whoever contributes a run passes on its record and never its local half.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.words import Unit

VERSION = 1
KINDS = ("obliterate", "stream", "verify", "harden", "probe", "analyze", "sweep", "study")
Kind = Literal["obliterate", "stream", "verify", "harden", "probe", "analyze", "sweep", "study"]
PromptSet = Literal["harmful", "harmless", "lookalikes"]
"""Those of a report: its own here, because the report's would bring torch along."""
State = Literal["running", "finished", "failed", "interrupted"]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+\-]{0,79}$")]
"""A name or a version: one word without slash, colon and @, so no text, path, address or mail."""
ModelName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.\-]{0,95}(/[\w.\-]{1,96})?$")
]
"""A name of the catalogue, or a Hub id."""
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z]{1,128}$")]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z][\w.\-]{0,79}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,=+\-]{0,80}$")]
"""The text of a setting: a choice, a range of layers, the name of a plugin."""
Value = bool | int | float | Word | None | tuple[Word | int | float, ...]
Test = Annotated[str, StringConstraints(pattern=r"^[A-Za-z\-]{1,20}( [A-Za-z\-]{1,20}){0,3}$")]
"""The name of a statistical test."""
DeviceClass = Annotated[str, StringConstraints(pattern=r"^(cpu|mps|[a-z]{2,8}:[\w .()\-]{1,60})$")]
"""``cpu``, ``mps``, or ``cuda`` with the model of the accelerator."""
Letters = Annotated[str, StringConstraints(pattern=r"^[rcdu]*$")]
"""One outcome a letter: refusal, compliance, degenerate, undetermined."""


class Fact(BaseModel):
    """A frozen part of a record that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelFacts(Fact):
    """A model as it was measured.

    Attributes:
        name: Its catalogue name or Hub id; null for what lies on a disk, whose name is its owner's.
        revision: The commit on the Hub.
        license: What its card says, where that is a name.
        source: The fingerprint of where it came from, equal for all who use the same bytes.
        weights: The fingerprint of its weights in memory.
        model_type: The architecture.
        layers: How many blocks it has.
        d_model: The width of its residual stream.
        dtype: What it computed in.
        quantization: How its weights are packed; null where they are not.
        device: The kind of device: cpu, cuda, mps.
    """

    name: ModelName | None
    revision: Hash | None
    license: Name | None
    source: Hash
    weights: Hash
    model_type: Name
    layers: int
    d_model: int
    dtype: Name
    quantization: Name | None
    device: Name


class Protocol(Fact):
    """How it was measured. Rows of two runs are compared only where this is the same.

    Attributes:
        prompts: The hash of the test prompts, their ids, order and pairing.
        harmful: How many test prompts are to bring the behaviour about.
        harmless: How many are their partners.
        system: The hash of the system prompt; null is none.
        judge: The hash of who judged, in words.
        new_tokens: How long an answer could get.
        documents: The hash of the held-out documents and of how many tokens each has.
    """

    prompts: Hash
    harmful: int
    harmless: int
    system: Hash | None
    judge: Hash
    new_tokens: int
    documents: Hash


class Metric(Fact):
    """One row of the report: its key, its unit, its estimates and its test."""

    key: Key
    unit: Unit
    original: Estimate | None
    edited: Estimate | None
    change: Estimate | None
    test: Test | None
    p_value: float | None
    adjusted_p: float | None


class Held(Fact):
    """One claim of the report: what was measured against which bound; its verdict is in it."""

    key: Key
    unit: Unit
    bound: float
    estimate: Estimate


class Outcomes(Fact):
    """What became of each prompt of one class, before and after, a letter each."""

    prompts: PromptSet
    ids: Hash
    original: Letters
    edited: Letters


class Aggregates(Fact):
    """What was measured of all prompts and documents together.

    Attributes:
        original: The model before.
        edited: The model after.
        protocol: How both were measured.
        verdict: On all claims.
        claims: The claims.
        metrics: The rows.
    """

    original: ModelFacts
    edited: ModelFacts
    protocol: Protocol
    verdict: Verdict
    claims: tuple[Held, ...]
    metrics: tuple[Metric, ...]

    def metric(self, key: str) -> Metric | None:
        """Return the metric called ``key``, or None where it was not measured."""
        return next((each for each in self.metrics if each.key == key), None)


class Results(Aggregates):
    """What was measured, of every prompt and document as well.

    Attributes:
        outcomes: Every prompt's outcomes, by class, in the order of the set.
        divergences: First-token KL of every harmless prompt, in nats.
        documents: Change of −log p per token of every held-out document.
        tokens: How many tokens each of them has.
    """

    outcomes: tuple[Outcomes, ...]
    divergences: tuple[float, ...]
    documents: tuple[float, ...]
    tokens: tuple[int, ...]


class Hardware(Fact):
    """What a run ran on, without names of hosts or users.

    Attributes:
        device: The class of device: ``cpu``, ``mps``, or ``cuda`` with its model.
        count: How many accelerators there are.
        system: The operating system.
        machine: The kind of processor.
        cores: How many processors there are.
        threads: How many torch uses.
        memory_gib: The memory of the machine.
    """

    device: DeviceClass
    count: int
    system: Name
    machine: Name
    cores: int
    threads: int
    memory_gib: float


class Record(Fact):
    """One run: what was done, on what, how, and what came of it.

    Attributes:
        version: The version of this format.
        kind: The command.
        method: The method, or the recipe of a defence; null where two models were compared.
        behaviour: What was looked for in the answers.
        seed: The seed of all that is random.
        settings: The settings that decide what was done, by dotted key; only those that are
            numbers or choices.
        hardware: What it ran on.
        versions: The packages that compute.
        seconds: What each stage took; ``total`` is the whole.
        numbers: What else was counted, by name.
        deviations: How many things were not done as asked.
        error: The class of the error that ended it.
        results: What was measured; null where nothing was.
    """

    version: Literal[1] = VERSION
    kind: Kind
    method: Name | None = None
    behaviour: Name | None = None
    seed: int | None = None
    settings: dict[Key, Value] = Field(default={})
    hardware: Hardware
    versions: dict[Name, Name] = Field(default={})
    seconds: dict[Key, float] = Field(default={})
    numbers: dict[Key, float] = Field(default={})
    deviations: int = 0
    error: Name | None = None
    results: Results | None = None


class Local(Fact):
    """What only this machine needs of a run; it is never contributed.

    Attributes:
        model: The model as it was asked for: a name or a path.
        edited: The edited model that was compared, as it was asked for.
        folder: Where the result was written.
        sentence: What the error said, without credentials.
    """

    model: str
    edited: str | None = None
    folder: str | None = None
    sentence: str | None = None
