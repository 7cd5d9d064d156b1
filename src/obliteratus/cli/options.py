"""The flags that several commands share, and what they set.

A flag mirrors one key of the settings; everything without a flag is reached with --set.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_PANEL, PROMPT_PANEL, STREAM_PANEL, OUTPUT_PANEL = "Model", "Prompts", "On disk", "Output"
NO_VALUE = ""  # the metavar of a flag; typer would write <bool>
MODEL_HELP = "A catalogue name, a Hub id, a local folder or a .gguf file."


def _model(*names: str, help: str, metavar: str = NO_VALUE) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=MODEL_PANEL)


def _prompt(*names: str, help: str, metavar: str) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=PROMPT_PANEL)


def _stream(*names: str, help: str, metavar: str = NO_VALUE) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=STREAM_PANEL)


def _output(*names: str, help: str, metavar: str = NO_VALUE) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=OUTPUT_PANEL)


Dtype = Annotated[
    str | None,
    _model("--dtype", help="auto, float32, bfloat16, float16 or float64.", metavar="TYPE"),
]
DeviceMap = Annotated[
    str | None, _model("--device-map", help="auto, cpu, cuda:0, ...", metavar="MAP")
]
MaxMemory = Annotated[
    str | None,
    _model("--max-memory", help="Most memory per device, such as 0=20GiB,cpu=60GiB.", metavar="M"),
]
Quantize = Annotated[str | None, _model("--quantize", help="4bit or 8bit.", metavar="BITS")]
Revision = Annotated[
    str | None, _model("--revision", help="Branch, tag or commit on the Hub.", metavar="REV")
]
Parallel = Annotated[
    str | None,
    _model(
        "--parallel",
        help="What the processes of torchrun share: the model (tensor) or the prompts (data).",
        metavar="WHAT",
    ),
]
TrustRemoteCode = Annotated[
    bool, _model("--trust-remote-code", help="Run Python code that comes with the model.")
]
JudgeName = Annotated[
    str | None,
    _output(
        "--judge",
        help="Who judges answers: keyword, log_odds, openings, classifier or llm for refusals.",
        metavar="NAME",
    ),
]
JudgeModel = Annotated[
    str | None,
    _output("--judge-model", help="The model of the judge classifier or llm.", metavar="MODEL"),
]
JudgeUrl = Annotated[
    str | None,
    _output(
        "--judge-url",
        help="OpenAI-compatible address of the judge llm. Prompts and answers are sent there.",
        metavar="URL",
    ),
]
Capability = Annotated[
    str | None,
    _output(
        "--capability",
        help="Tasks, with commas: multiple_choice, word_problems, or those of lm-eval.",
        metavar="A,B",
    ),
]


def behaviour_names(incomplete: str) -> list[str]:
    """Return the behaviours whose names begin with ``incomplete``, for the shell."""
    from obliteratus.measure.behaviour import BEHAVIOURS

    return [name for name in BEHAVIOURS if name.startswith(incomplete)]


BehaviourName = Annotated[
    str | None,
    typer.Option(
        "--behaviour",
        "-b",
        help="What is looked at; refusal if not given. `obliteratus behaviours` lists them.",
        metavar="NAME",
        rich_help_panel=PROMPT_PANEL,
        autocompletion=behaviour_names,
    ),
]
Harmful = Annotated[
    str | None,
    _prompt(
        "--harmful",
        help="Prompts that bring it about: txt, csv, json, jsonl, parquet, or a Hub data set.",
        metavar="FILE",
    ),
]
Harmless = Annotated[
    str | None,
    _prompt("--harmless", help="Their harmless partners, given with --harmful.", metavar="FILE"),
]
Categories = Annotated[
    str | None,
    _prompt("--categories", help="Only these categories of prompts, with commas.", metavar="A,B"),
]
System = Annotated[
    str | None, _prompt("--system", help="A system prompt for every prompt.", metavar="TEXT")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", metavar="N")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other setting, such as edit.strength=0.5; repeatable.",
        metavar="KEY=VALUE",
    ),
]
Stream = Annotated[
    bool,
    _stream("--stream", help="Edit the checkpoint on disk, shard by shard, without loading it."),
]
DirectionsFile = Annotated[
    Path | None,
    _stream("--directions", help="With --stream: the directions.safetensors.", metavar="FILE"),
]
PlanFile = Annotated[
    Path | None, _stream("--plan", help="With --stream: a plan.json instead.", metavar="FILE")
]
Output = Annotated[
    Path | None, _output("--output", "-o", help="Folder to write to.", metavar="DIR")
]
SaveActivations = Annotated[
    bool, _output("--save-activations", help="Keep every prompt's activations.")
]
SaveCompletions = Annotated[
    bool, _output("--save-completions", help="Keep completions, of harmful prompts as well.")
]
Force = Annotated[bool, _output("--force", help="Replace the output if it exists.")]
Json = Annotated[bool, _output("--json", help="Events and the result as lines of JSON.")]
Quiet = Annotated[bool, _output("--quiet", "-q", help="Print only the path of the result.")]


def section(**values: Any) -> dict[str, Any]:
    """Return the flags that were given; one that was not (None or False) sets nothing."""
    return {key: value for key, value in values.items() if value is not None and value is not False}


def settings(**values: Any) -> dict[str, Any]:
    """Return nested settings without the sections in which no flag was given."""
    return {key: value for key, value in values.items() if value is not None and value != {}}


def keys(values: Mapping[str, Any], start: str = "") -> list[str]:
    """Return the dotted keys that nested ``values`` set."""
    found: list[str] = []
    for key, value in values.items():
        below = keys(value, f"{start}{key}.") if isinstance(value, Mapping) else [f"{start}{key}"]
        found.extend(below)
    return found


def split_names(text: str | None) -> list[str] | None:
    """Return the names in ``a, b``, or None when the flag was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings in which ``above`` wins over ``below``."""
    result = dict(below)
    for key, value in above.items():
        under: Any = result.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        result[key] = merged(under, value) if both else value
    return result
