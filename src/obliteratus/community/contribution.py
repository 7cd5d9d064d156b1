"""What is contributed of a run: fewer facts than its record has, and the hash of their content.

It has no outcome of a single prompt, nothing of the machine but the class of its device, and, like
a record, no field that could hold a text. Equal runs give equal bytes.
"""

import datetime
import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from obliteratus.community.book import Run
from obliteratus.community.record import (
    Aggregates,
    DeviceClass,
    Fact,
    Key,
    Kind,
    Name,
    Value,
)
from obliteratus.directions.directions import Directions
from obliteratus.errors import UsageError
from obliteratus.statistics.estimate import Estimate

FORMAT = "obliteratus.contribution"
VERSION = 1
FOLDER = "runs"
"""The folder of a data set that holds one file for each run."""
PACKAGES = ("obliteratus", "torch", "transformers")
Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class DirectionFacts(Fact):
    """Numbers about the directions of a run, and not the directions.

    Attributes:
        method: What found them.
        rank: The most of them at any layer.
        layers: At how many layers there are any.
        source_layer: Where they were read; null where each layer has its own.
        position: The token position, from the end of the prompt where it is negative.
        strength: The strength that the select prompts support.
        strong_layers: The layers that were ranked strong.
        reliability: Split-half cosine, bootstrap angle, permutation p and the like.
    """

    method: Name
    rank: int
    layers: int
    source_layer: int | Literal["embedding"] | None
    position: int | None
    strength: float
    strong_layers: tuple[int, ...]
    reliability: dict[Key, Estimate]


class Contribution(Fact):
    """One run as others see it.

    Attributes:
        format: What this file is.
        version: The version of this format.
        sha256: The hash of everything else (:func:`content_hash`).
        kind: The command.
        method: The method, or the recipe of a defence; null where two models were compared.
        behaviour: What was looked for in the answers.
        seed: The seed of all that is random.
        settings: The settings that decide what was done, by dotted key.
        day: When the run began, to the day (UTC).
        device: The class of device.
        versions: The packages that compute.
        seconds: What each stage took; ``total`` is the whole.
        deviations: How many things were not done as asked.
        results: The models, how they were measured, and what was measured of all prompts together.
        directions: Numbers about the directions; null where the run has none.
        shared: The SHA-256 of the file with the directions, where they are given as well.
    """

    format: Literal["obliteratus.contribution"] = FORMAT
    version: Literal[1] = VERSION
    sha256: Sha256
    kind: Kind
    method: Name | None
    behaviour: Name | None
    seed: int | None
    settings: dict[Key, Value]
    day: Day
    device: DeviceClass
    versions: dict[Name, Name]
    seconds: dict[Key, float]
    deviations: int
    results: Aggregates
    directions: DirectionFacts | None = None
    shared: Sha256 | None = Field(default=None)

    @property
    def path(self) -> str:
        """Where it lies in a data set."""
        return f"{FOLDER}/{self.sha256}.json"

    @property
    def is_intact(self) -> bool:
        """Whether its hash is that of its content."""
        return self.sha256 == content_hash(self.model_dump(mode="json"))


def contribution_of(
    run: Run, directions: Directions | None = None, *, shared: str | None = None
) -> Contribution:
    """Return what is contributed of ``run``; nothing of its local half is looked at.

    ``directions`` are those that it found, of which statistics are kept, and ``shared`` the hash of
    the file that holds them, where that is given as well.

    Raises:
        UsageError: the run has not finished, measured no edited model, or holds what a contribution
            has no place for.
    """
    record = run.record
    if run.state != "finished" or record.results is None:
        what = f"is {run.standing}" if run.state != "finished" else "measured no edited model"
        raise UsageError(
            f"the run {run.id} ({record.kind}) {what}, so it has nothing that others could compare "
            "with. Contribute a finished run of obliterate, verify or harden."
        )
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": record.kind,
        "method": record.method,
        "behaviour": record.behaviour,
        "seed": record.seed,
        "settings": record.settings,
        "day": datetime.datetime.fromtimestamp(run.started, datetime.UTC).strftime("%Y-%m-%d"),
        "device": record.hardware.device,
        "versions": {name: record.versions[name] for name in PACKAGES if name in record.versions},
        "seconds": record.seconds,
        "deviations": record.deviations,
        "results": {name: getattr(record.results, name) for name in Aggregates.model_fields},
        "shared": shared,
    }
    try:
        found = None if directions is None else direction_facts(directions)
        unsigned = Contribution(sha256="0" * 64, directions=found, **values)
    except ValidationError as error:
        raise UsageError(
            f"the run {run.id} holds what no contribution has a place for ({_where(error)}). It "
            "cannot be contributed as it is."
        ) from error
    return unsigned.model_copy(update={"sha256": content_hash(unsigned.model_dump(mode="json"))})


def direction_facts(directions: Directions) -> DirectionFacts:
    """Return numbers about ``directions``."""
    return DirectionFacts(
        method=directions.method,
        rank=directions.rank,
        layers=len(directions.basis),
        source_layer=directions.source_layer,
        position=directions.position,
        strength=directions.strength,
        strong_layers=directions.strong_layers,
        reliability={
            name: value
            for name, value in directions.reliability.items()
            if all(map(math.isfinite, (value.value, *value.interval)))
        },
    )


def content_hash(values: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON-ready ``values`` without their own hash.

    It is that of the UTF-8 of the JSON with sorted keys, without spaces, all but ASCII escaped.
    """
    signed = {key: value for key, value in values.items() if key != "sha256"}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def as_bytes(contribution: Contribution) -> bytes:
    """Return the file: JSON with sorted keys, the exact bytes that leave."""
    text = json.dumps(
        contribution.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False
    )
    return f"{text}\n".encode()


def parsed(data: bytes) -> Contribution:
    """Return the contribution that ``data`` holds.

    Raises:
        ValueError: it is none; the message says where and why.
    """
    try:
        return Contribution.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(_where(error)) from error


def _where(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg']}"
