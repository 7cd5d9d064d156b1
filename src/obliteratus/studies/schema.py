"""What a study is: models × behaviours × methods × settings × seeds, and components to take out."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from obliteratus.settings import RunSettings, Section

PartKind = Literal["layer", "attention", "head", "mlp", "mixer", "embedding"]
Replacement = Literal["zero", "mean"]
Metric = Literal[
    "refusal_harmful",
    "refusal_harmless",
    "over_refusal",
    "degenerate_harmful",
    "log_odds_harmful",
    "log_odds_harmless",
    "kl_first",
    "perplexity_heldout",
    "coherence",
    "multiple_choice",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
CHEAP: tuple[Metric, ...] = ("log_odds_harmful", "kl_first", "perplexity_heldout")
VARIANT = "one set of settings of a run, nested as in its run.json"


class Ablation(Section):
    """Components that are taken out one at a time, through hooks; no weight changes.

    Attributes:
        part: Whole ``layer`` (the block passes on what it got), the ``attention``, ``mlp`` (or the
            experts of a mixture) or state-space ``mixer`` of a layer, one query ``head``, or a
            range of the coordinates of the ``embedding``.
        by: What stands in its place: its ``mean`` over the tokens of fit prompts, which takes away
            what depends on the input, or ``zero``, which also leaves the model where it never was.
        layers: ``all``, ``8``, ``10-20`` or ``0,3,8-16``; of no account to the embedding.
        ranges: Into how many ranges the coordinates of the embedding are cut.
    """

    part: PartKind
    by: Replacement = "mean"
    layers: str = "all"
    ranges: int = Field(default=8, ge=2, le=4096)


class Study(Section):
    """A study as its YAML file says it.

    Every combination of models, behaviours, methods, settings and seeds is a unit that edits; every
    component that the ablations name, in each model and for each behaviour, is a unit that ablates.
    An ablation draws nothing at random, so it is not repeated by seeds.

    Attributes:
        name: What it is called; its folder is called so, too.
        question: What it is to answer, in a sentence.
        models: Names as for ``obliterate``; empty where they are given on the command line.
        behaviours: What is looked at.
        methods: Presets of edits; see ``obliteratus methods``.
        settings: One set of settings per variant of each method.
        common: Settings of every unit, of edits and ablations.
        seeds: Of everything random in an edit.
        ablations: Which components are taken out.
        metrics: What is measured, by the keys of ``report.json``.
        prompts: Test prompts of each class; 0 takes all. Where there are not so many, rewrites of
            them are added, and intervals are over the prompts that they came from.
        attempts: How often the worker of a unit may die before the unit is given up.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    question: str = ""
    models: tuple[str, ...] = ()
    behaviours: tuple[str, ...] = ("refusal",)
    methods: tuple[str, ...] = ()
    settings: tuple[dict[str, Any], ...] = Field(default=({},))
    common: dict[str, Any] = Field(default={})
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    ablations: tuple[Ablation, ...] = ()
    metrics: tuple[Metric, ...] = CHEAP
    prompts: int = Field(default=0, ge=0)
    attempts: int = Field(default=3, ge=1)

    @field_validator("models", "behaviours", "methods", "seeds", "metrics", "ablations")
    @classmethod
    def _named_once(cls, value: Sequence[Any]) -> Sequence[Any]:
        counts = Counter(map(str, value))
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is given twice; give it once")
        return value

    @field_validator("behaviours", "seeds", "metrics", "settings")
    @classmethod
    def _some(cls, value: Sequence[Any]) -> Sequence[Any]:
        if not value:
            raise ValueError("an empty list leaves no unit; leave the key out, or name something")
        return value

    @field_validator("settings")
    @classmethod
    def _different(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        if any(one == other for i, one in enumerate(value) for other in value[:i]):
            raise ValueError("two variants are the same; give each once")
        return value

    @model_validator(mode="after")
    def _something_to_do(self) -> "Study":
        if not (self.methods or self.ablations):
            raise ValueError(
                "the study has no units: name methods to edit by, or ablations, or both"
            )
        if not self.methods and self.settings != ({},):
            raise ValueError("settings are variants of methods, and there are none; use common")
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file, with the settings of a run inside, for editors."""
    schema = Study.model_json_schema()
    run = RunSettings.model_json_schema(ref_template="#/$defs/{model}")
    schema.setdefault("$defs", {}).update(run.pop("$defs", {}))
    schema["$defs"]["RunSettings"] = run
    reference = {"$ref": "#/$defs/RunSettings"}
    schema["properties"]["common"] = {**reference, "description": "Settings of every unit."}
    schema["properties"]["settings"] = {
        "type": "array",
        "items": reference,
        "minItems": 1,
        "description": f"Variants of every method: each is {VARIANT}.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
