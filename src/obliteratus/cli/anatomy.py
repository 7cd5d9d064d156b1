"""A model's anatomy as tables and as JSON, for ``inspect``."""

import math
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from transformers import PreTrainedModel

from obliteratus.amounts import count, size
from obliteratus.cli.render import Screen
from obliteratus.cli.tables import listing, table
from obliteratus.errors import StorageError
from obliteratus.models.anatomy import Anatomy, PostNorm, WeightSite
from obliteratus.models.memory import MemoryNeeded, memory_needed
from obliteratus.store import write_json

LOADS = ("float32", "bfloat16", "8bit", "4bit")


def show(screen: Screen, module: PreTrainedModel, anatomy: Anatomy, share: float) -> None:
    """Show writers and readers, coverage and memory as tables.

    Sites that differ in nothing but their layer are one row, with ``*`` in the layer's place.
    """
    patterns = _patterns(anatomy, _shapes(module))
    columns = ("site", "part", "shape", "")
    for role, title in (("writer", "writes to the stream"), ("reader", "reads the stream")):
        rows = [
            (site.name, _part(site, times), _axes(site, shape), _remarks(site, anatomy))
            for (site, shape), times in patterns.items()
            if site.role == role
        ]
        screen.say(table(columns, rows, title=title))
    screen.say(_coverage(anatomy, share, module))
    needs = {load: _memory(module, anatomy, load).as_json() for load in LOADS}
    parts = ("weights", "head", "edit", "batch", "total")
    columns = ("loaded as", "weights", "untied head", "one edit", "one batch", "in all")
    screen.say(
        table(
            columns,
            [(load, *(size(need[part]) for part in parts)) for load, need in needs.items()],
            numbers=frozenset(columns[1:]),
            title="memory that a run needs",
        )
    )
    screen.say(" Programs and libraries take about 0.4 GB on a CPU and 1 GB on a GPU besides.\n")


def _coverage(anatomy: Anatomy, share: float, module: PreTrainedModel) -> RenderableType:
    total = sum(weight.numel() for weight in module.parameters())
    rows = [
        ("parameters", count(total)),
        ("coverage", f"{100 * share:.4g} % of what may write to the stream is described"),
    ]
    if anatomy.unmatched:
        rows.append(("undescribed", ", ".join(anatomy.unmatched)))
        rows.append(("so", f"edits are refused; add these to models/families/{anatomy.family}.py"))
    if anatomy.hooks_only:
        rows.append(("hooks only", anatomy.hooks_only))
    if anatomy.streams:
        kept = f"{anatomy.streams.count} side by side, mixed by scalars per token"
        rows.append(("streams", f"{kept}; the one that is read is number {anatomy.streams.active}"))
    if anatomy.stream_sites:
        places = dict.fromkeys(_starred(each.module, each.layer) for each in anatomy.stream_sites)
        rows.append(("hooks also", f"where the stream changes: {', '.join(places)}"))
    return listing(anatomy.family, f"model_type {anatomy.model_type}", rows)


def _patterns(
    anatomy: Anatomy, shapes: dict[str, tuple[int, ...]]
) -> Counter[tuple[WeightSite, tuple[int, ...]]]:
    """Count the sites that differ in nothing but their layer, shown with ``*`` in its place."""
    found: Counter[tuple[WeightSite, tuple[int, ...]]] = Counter()
    for site in anatomy.sites:
        norm = site.post_norm
        general = replace(
            site,
            name=_starred(site.name, site.layer),
            module="",
            layer=None,
            bias="yes" if site.bias else None,
            post_norm=_starred_norm(norm, site.layer) if norm else None,
        )
        found[general, shapes[site.name]] += 1
    return found


def _starred(name: str, layer: int | None) -> str:
    return name if layer is None else re.sub(rf"(?<=\.){layer}(?=\.)", "*", name, count=1)


def _starred_norm(norm: PostNorm, layer: int | None) -> PostNorm:
    bias = None if norm.bias is None else _starred(norm.bias, layer)
    return replace(norm, name=_starred(norm.name, layer), bias=bias)


def _part(site: WeightSite, times: int) -> str:
    return f"{site.component} × {times}" if times > 1 else site.component


def _axes(site: WeightSite, shape: tuple[int, ...]) -> str:
    """Return ``out 576 × in 1536``: the axes in the order in which they are stored."""
    words = site.layout.split("_")
    named = [f"{word} {length}" for word, length in zip(words, shape[-2:], strict=True)]
    return " × ".join([*(f"{length} experts" for length in shape[:-2]), *named])


def _remarks(site: WeightSite, anatomy: Anatomy) -> str:
    """Return in words what makes a site more than a plain matrix."""
    found = ["bias"] if site.bias else []
    if site.post_norm is not None:
        name = site.post_norm.name.split(".*.")[-1].removesuffix(".weight")
        facts = [" (gain − 1)"] if site.post_norm.gain_offset else []
        facts += [" and its bias"] if site.post_norm.bias else []
        found.append(f"through {name}" + "".join(facts))
    if math.isnan(site.multiplier):
        found.append("times a scalar of its own")
    elif site.multiplier != 1:
        found.append(f"times {site.multiplier:.4g}")
    if site.tied_to:
        others = (f"the {each.component}" for each in anatomy.sites if each.name == site.tied_to)
        found.append(f"tied to {next(others, site.tied_to)}")
    return ", ".join(found)


def _memory(module: PreTrainedModel, anatomy: Anatomy, load: str) -> MemoryNeeded:
    streams = 1 if anatomy.streams is None else anatomy.streams.count
    if load in ("8bit", "4bit"):
        return memory_needed(module, dtype=torch.bfloat16, quantize=load, streams=streams)
    return memory_needed(module, dtype=getattr(torch, load), streams=streams)


def _shapes(module: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    named = module.named_parameters(remove_duplicate=False)
    return {name: tuple(weight.shape) for name, weight in named}


def as_json(model: str, module: PreTrainedModel, anatomy: Anatomy, share: float) -> dict[str, Any]:
    """Return the anatomy with shapes, coverage and memory, ready for JSON.

    A multiplier that is only known once the model is loaded (a buffer) is None.
    """
    shapes = _shapes(module)
    value = asdict(anatomy)
    value["sites"] = [
        {
            **asdict(site),
            "shape": list(shapes[site.name]),
            "multiplier": None if math.isnan(site.multiplier) else site.multiplier,
        }
        for site in anatomy.sites
    ]
    return {
        "model": model,
        "coverage": share,
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "memory": {load: _memory(module, anatomy, load).as_json() for load in LOADS},
        "anatomy": value,
    }


def write(path: Path, value: dict[str, Any], *, force: bool) -> None:
    """Write what :func:`as_json` returned.

    Raises:
        StorageError: the file exists and ``force`` is false.
    """
    if path.exists() and not force:
        raise StorageError(f"{path} already exists. Choose another folder, or pass --force.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
