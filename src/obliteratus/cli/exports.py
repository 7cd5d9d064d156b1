"""The formats that ``obliteratus export --to`` knows: one entry of ``FORMATS`` each.

An entry's ``write`` takes what was typed and returns what to tell the user. It imports what it
needs when it runs, so that ``--help`` stays light.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obliteratus.errors import UsageError, did_you_mean

LLAMA_CPP_KINDS = {"float64": "f32", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""What llama.cpp's converter calls the types of a saved folder."""


@dataclass(frozen=True)
class Request:
    """What was typed: the run's folder (or a file of it), the output, and the original model."""

    run: Path
    output: Path
    source: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written, in sentences for a person and as values for a machine."""

    sentences: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One format; ``takes_source`` says whether ``--source`` means anything to it."""

    summary: str
    write: Callable[[Request], Exported]
    takes_source: bool = False


def export(name: str, request: Request) -> Exported:
    """Write what ``request`` asks for in the format called ``name``.

    Raises:
        UsageError: there is no such format, or it takes no ``--source``.
        ObliteratusError: see the format; ``request.output`` is then as it was.
    """
    if name not in FORMATS:
        raise UsageError(f"cannot export to '{name}'.{did_you_mean(name, FORMATS)}")
    chosen = FORMATS[name]
    if request.source is not None and not chosen.takes_source:
        raise UsageError(f"--to {name} does not use --source; leave it out.")
    if not request.run.exists():
        raise UsageError(f"there is no {request.run}. Give the folder that `obliterate` wrote.")
    return chosen.write(request)


def _control_vector(request: Request) -> Exported:
    from obliteratus.release.control_vector import export_control_vector, noun_of
    from obliteratus.release.directions_file import load_directions
    from obliteratus.release.run_folder import run_folder

    model_type, n_passes = None, 1
    if request.run.is_file():
        directions = load_directions(request.run)
    else:
        run = run_folder(request.run)
        directions, model_type, n_passes = run.directions(), run.model_type(), len(run.plans())
    layers, deviations = export_control_vector(
        directions, request.output, model_type=model_type, force=request.force
    )
    which = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    which += f", from the first of {n_passes} passes" if n_passes > 1 else ""
    return Exported(
        (
            f"A control vector for {which}; llama.cpp counts blocks as this program does.",
            f"`--control-vector-scaled {request.output}:-1` lowers {noun_of(directions)} by one "
            "distance of the class means, 1 raises it. It only adds: to remove a direction use the "
            "edited model.",
        ),
        {"layers": list(layers), "deviations": [vars(each) for each in deviations]},
    )


def _gguf(request: Request) -> Exported:
    from obliteratus.release.gguf_export import export_gguf
    from obliteratus.release.run_folder import run_folder

    run = run_folder(request.run)
    source = request.source or _source_of(run.run(), request)
    receipt = export_gguf(
        source, run.plans(), request.output, norms=run.norms(), force=request.force
    )
    kinds = sorted({record.kind for record in receipt.records})
    before = sum(record.norm_before**2 for record in receipt.records)
    removed = sum(record.energy_removed * record.norm_before**2 for record in receipt.records)
    mean = sum(record.remaining for record in receipt.records) / len(receipt.records)
    refilled = max(record.refilled for record in receipt.records)
    worst = receipt.worst
    sentences = [
        f"{len(receipt.records)} tensors edited ({', '.join(kinds)}), {removed / before:.2%} of "
        "their energy; every other byte is the source's.",
        f"Remaining energy along the edited directions, where a random direction has 1: mean "
        f"{mean:.1e}, at most {worst.remaining:.1e} in {worst.tensor}. Rounding put back at most "
        f"{refilled:.1e}.",
    ]
    if receipt.head is not None:
        sentences.append(
            f"{receipt.head} added: the embedding served as the head, which keeps its numbers."
        )
    return Exported(tuple(sentences), {"source": str(source), "receipt": receipt.as_json()})


def _lora(request: Request) -> Exported:
    from obliteratus.models.summon import summon
    from obliteratus.release.lora import export_lora
    from obliteratus.release.run_folder import run_folder
    from obliteratus.settings import ModelSettings

    run = run_folder(request.run)
    recorded = run.run()
    source = recorded["source"]
    settings = ModelSettings(revision=source["revision"], dtype=recorded["dtype"])
    receipt = export_lora(
        summon(recorded["model"], settings),
        run.plans(),
        request.output,
        fingerprint=source["fingerprint"],
        behaviour=recorded["requested"].get("behaviour", "refusal"),
        force=request.force,
    )
    ranks, gap = ", ".join(str(rank) for rank in receipt.ranks), receipt.agreement
    sentences = [
        f"An adapter of rank {ranks} on {len(receipt.layers) + len(receipt.parameters)} matrices "
        f"({receipt.size / 1e6:.1f} MB) for {recorded['model']}.",
        f"Loaded back with peft its logits are {gap.logit_gap:.1e} from those of the hooks, which "
        f"move them by {gap.logit_change:.1e}.",
    ]
    if receipt.unmergeable is not None:
        sentences.append(f"Do not merge it: {receipt.unmergeable}.")
    return Exported(tuple(sentences), {"receipt": receipt.as_json()})


def _zip(request: Request) -> Exported:
    from obliteratus.amounts import size
    from obliteratus.release.archive import archive

    count = archive(request.run, request.output, force=request.force)
    n_bytes = request.output.stat().st_size
    return Exported((f"{count} files, {size(n_bytes)}.",), {"files": count, "bytes": n_bytes})


def _source_of(run: Mapping[str, Any], request: Request) -> Path:
    """Return the GGUF file that a run began with.

    Raises:
        UsageError: it began with something else, or the file is gone or has changed.
    """
    from obliteratus.release.gguf_export import converter_command
    from obliteratus.release.gguf_plan import CONVERTER
    from obliteratus.store import sha256_of_file

    source = run["source"]
    if source["kind"] != "gguf":
        kind = LLAMA_CPP_KINDS[run["dtype"]]
        raise UsageError(
            f"the model of this run, {source['identifier']}, is not a .gguf file. Convert the "
            f"edited folder with llama.cpp's {CONVERTER}: "
            f"`{converter_command(request.run, request.output, kind)}`, or give a GGUF file of "
            "the original with --source."
        )
    path = Path(source["identifier"])
    if not path.is_file() or sha256_of_file(path) != source["sha256"]:
        raise UsageError(
            f"{path}, which this run began with, is gone or has changed. Give it with --source."
        )
    return path


FORMATS: dict[str, Format] = {
    "control-vector": Format("what to add to the stream, for llama.cpp", _control_vector),
    "lora": Format("the edit as an adapter of low rank for the original, for peft", _lora),
    "gguf": Format("the edited model, from a GGUF file of the original", _gguf, takes_source=True),
    "zip": Format("the folder in one file, with everything that was measured", _zip),
}
