"""What a worker of a Ray cluster asks for: processors, GPUs and memory, by its model's need."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from obliteratus.settings import ModelSettings, RunSettings
from obliteratus.store import Store

PROGRAMS = 1_000_000_000  # bytes of libraries in every worker, on its node and on each of its GPUs
USABLE = 0.9  # of a GPU: what is allocated and freed leaves gaps
ON_ONE = ("cuda", "mps", "xpu")
"""Device maps that begin so put all of a model on one device."""


@dataclass(frozen=True)
class Needs:
    """What a worker asks of the cluster: processors, GPUs, and bytes of its node's memory.

    ``model`` is how many bytes the model takes, wherever they are.
    """

    cpus: float
    gpus: int
    memory: int
    model: int = 0


@dataclass(frozen=True)
class Accelerators:
    """The GPUs of a cluster: how many, and the bytes of the smallest, 0 where torch has none."""

    count: int = 0
    memory: int = 0


def gpu_bytes() -> int:
    """Return the memory of the first GPU that this process may use; 0 where torch can use none."""
    import torch  # on another node, in a process of its own

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def accelerators(ray: Any) -> Accelerators:
    """Ask every node with GPUs how much memory its GPUs have."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(gpu_bytes)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    found = [
        ask.options(
            num_cpus=0,
            num_gpus=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        for node in nodes
    ]
    if not found:
        return Accelerators()
    count = sum(int(node["Resources"]["GPU"]) for node in nodes)
    return Accelerators(count, min(ray.get(found)))


def needs(
    total: Mapping[str, float], workers: int, spec: Mapping[str, Any], gpus: Accelerators
) -> Needs:
    """Return what a worker for the model of ``spec`` asks for; one without a model, for CPUs.

    ``total`` are the resources of the cluster, of whose processors each of ``workers`` gets its
    share. A model is put on as few GPUs as hold it (one, where the device map names it), and where
    torch can use no GPU into the memory of a node.
    """
    cpus = max(1.0, float(int(total.get("CPU", 1.0) / workers)))
    if "settings" not in spec:
        return Needs(cpus, 0, 0)
    settings = RunSettings.model_validate(spec["settings"]).model
    on_gpu = gpus.memory > 0 and settings.device_map != "cpu"
    size = _bytes(spec["model"], settings, on_gpu=on_gpu)
    if not on_gpu:
        return Needs(cpus, 0, PROGRAMS + size, size)
    is_on_one = settings.device_map is not None and settings.device_map.startswith(ON_ONE)
    # A model on GPUs passes through the memory of its node on the way there, shard by shard.
    return Needs(cpus, 1 if is_on_one else gpus_for(size, gpus.memory), PROGRAMS, size)


def gpus_for(size: int, memory: int) -> int:
    """Return how many GPUs of ``memory`` bytes hold a model that takes ``size``."""
    each = max(USABLE * memory - PROGRAMS, 1.0)
    return max(1, math.ceil(size / each))


def too_much(ray: Any, asked: Needs, gpus: Accelerators) -> str | None:
    """Return why no node can ever take a worker with these needs; None where one can."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    most = max((int(node.get("GPU", 0)) for node in nodes), default=0)
    if asked.gpus > most:
        return (
            f"the model needs {asked.model / 1e9:.1f} GB, which is {asked.gpus} GPUs of "
            f"{gpus.memory / 1e9:.1f} GB, and no node has more than {most}. Set model.quantize or "
            "model.device_map=cpu, or add a node."
        )
    if asked.memory <= largest:
        return None
    return (
        f"the model needs {asked.memory / 1e9:.1f} GB of memory, and the largest node of the "
        f"cluster has {largest / 1e9:.1f} GB for Ray. Add a node, or start its Ray with --memory."
    )


def spread(spec: Mapping[str, Any], gpus: int) -> Mapping[str, Any]:
    """Return ``spec`` with its model spread over the GPUs of its worker, if there are several."""
    if gpus < 2:
        return spec
    settings = spec["settings"]
    if settings["model"].get("device_map") is not None:
        return spec
    return {**spec, "settings": {**settings, "model": {**settings["model"], "device_map": "auto"}}}


def _bytes(model: str, settings: ModelSettings, *, on_gpu: bool) -> int:
    import torch  # workers import this module as well

    from obliteratus.models.memory import memory_needed
    from obliteratus.models.sources import resolve
    from obliteratus.models.summon import outline

    automatic = torch.bfloat16 if on_gpu else torch.float32
    dtype = automatic if settings.dtype == "auto" else getattr(torch, settings.dtype)
    folder = resolve(model, settings, store=Store()).folder
    return memory_needed(outline(folder, settings), dtype=dtype, quantize=settings.quantize).total
