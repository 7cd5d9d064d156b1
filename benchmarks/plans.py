"""Two models that fit no single device, and the machines for them: what each stage would take.

Nothing here was run. The rates of GPUs, networks and disks are those of data sheets times a share
that kernels usually reach; what one core does (hashing, arithmetic of an edit, the dispatch of an
operation) is as measured here. The work is that of the built-in prompts with default settings.
"""

from collections.abc import Iterator

from costs import (
    Cost,
    Latent,
    Machine,
    Shape,
    answering,
    batch_that_fits,
    editing,
    probing,
    summoning,
)

from obliteratus.edits.rewrite import FREE_SHARE, THREADS
from obliteratus.models.folders import HASHED_AT_ONCE

LLAMA = Shape("Llama 3.1 405B", 126, 16384, 128, 8, 128, 53248, 128256)
MIXTURE = Shape(
    "1T mixture (384 experts, 8 active)",
    layers=61,
    width=7168,
    heads=64,
    kv_heads=64,
    head=128,
    mlp=18432,
    vocabulary=163840,
    experts=384,
    active=8,
    shared=1,
    expert_mlp=2048,
    dense=1,
    latent=Latent(query=1536, key_value=512, plain=128, rotary=64, value=128),
)
"""As the configuration of Kimi K2 has it."""
SIZE = 2  # bytes of a bfloat16
FIT, SELECT, TEST, LOOKALIKES, AGAIN = 1024, 96, 256, 100, 16  # prompts
TOKENS, NEW = 19, 64  # of a prompt behind what all share, and of an answer
HELD_OUT = 14_586
DEPTH, OTHER_RUNS = 0.8, 8  # of the layers, one run each; and the runs of ranks and strengths
GPU_BATCH, CPU_BATCH, ROWS = 16384, 512, 256
EDIT_CORES, HOST_MEMORY = 64, 1e12  # of the machine whose disk is edited


def machines(here: Machine) -> Iterator[Machine]:
    """Yield the machines of the plans; what one core does is as ``here``."""
    common = {"number": SIZE, "hash": HASHED_AT_ONCE * here.hash, "dispatch": here.dispatch}
    disk = {
        "disk": 6e9,
        "write": 3e9,
        "edit": here.edit,
        "handle": here.handle,
        "cores": EDIT_CORES,
        "threads": min(THREADS, 1 + EDIT_CORES),
        "free": HOST_MEMORY,
    }
    rates = {"product": 2 / (0.5 * 989e12)}
    small = {"read": SIZE / (0.7 * 3.35e12), "memory": 0.6 * 3.35e12, "room": 80e9, **rates}
    large = {"read": SIZE / (0.7 * 4.8e12), "memory": 0.6 * 4.8e12, "room": 141e9, **rates}
    one, several = {"latency": 30e-6, "link": 300e9}, {"latency": 100e-6, "link": 40e9}
    for name, n, gpu, network in (
        ("8 × H100, one node, tensor", 8, small, one),
        ("16 × H100, two nodes, tensor", 16, small, several),
        ("8 × H200, one node, tensor", 8, large, one),
        ("32 × H200, four nodes, tensor", 32, large, several),
    ):
        yield Machine(name=name, n=n, **gpu, **network, **disk, **common)
    cpu = {
        "read": SIZE / 400e9,
        "product": 2 / 20e12,
        "memory": 400e9,
        "room": 3e12,
        "latency": 0.0,
        "link": 1.0,
    }
    yield Machine(name="one host, 3 TB of memory, CPU", n=1, **cpu, **disk, **common)


def stages(shape: Shape, machine: Machine) -> dict[str, Cost]:
    """Return the cost of each stage of the workflow of docs/scale.md."""
    batch = batch_that_fits(shape, machine, CPU_BATCH if machine.n == 1 else GPU_BATCH)
    loading = summoning(shape, machine)
    runs = round(DEPTH * shape.layers) + OTHER_RUNS
    reading = probing(shape, machine, TEST * (2 * TOKENS + NEW // 2) + HELD_OUT, batch=batch)
    answers = Cost({})
    for prompts in (TEST, LOOKALIKES, AGAIN):
        answers += answering(shape, machine, prompts, NEW, prompt=TOKENS, batch=batch, rows=ROWS)
    edited = editing(
        SIZE * shape.parameters,
        SIZE * shape.written,
        machine,
        largest=SIZE * shape.largest,
        share=FREE_SHARE,
    )
    return {
        "SUMMON": loading,
        "PROBE": probing(shape, machine, FIT * TOKENS, batch=batch),
        "DISTILL": probing(shape, machine, SELECT * TOKENS, batch=batch).times(runs),
        "EXCISE, on disk": edited,
        "VERIFY, both models": (loading + reading + answers).times(2),
    }


def plan(shape: Shape, machine: Machine) -> list[str]:
    """Return the rows of one machine, or one row that says why it does not do."""
    if machine.n > 1 and shape.latent is None and shape.kv_heads % machine.n:
        reason = f"{shape.kv_heads} key-value heads for {machine.n} processes"
        return [f"| {machine.name} | is refused | {reason} |||||"]
    found = stages(shape, machine)
    need = max(cost.memory for cost in found.values())
    if need > machine.room:
        return [f"| {machine.name} | does not fit | {amount(need)} of {amount(machine.room)} |||||"]
    return [
        f"| {machine.name} | {name} | {amount(cost.memory)} | {amount(cost.disk)} | "
        f"{amount(cost.network)} | {duration(cost.total)} | {cost.limit} |"
        for name, cost in found.items()
    ]


def planned(here: Machine) -> list[str]:
    """Return the plans as lines of the page."""
    lines: list[str] = []
    for shape in (LLAMA, MIXTURE):
        size, head = SIZE * shape.parameters, SIZE * shape.embedding
        lines += [
            f"**{shape.name}**: {shape.parameters / 1e9:.0f} B parameters, {amount(size)} in "
            f"bfloat16, of which an edit changes {amount(SIZE * shape.written)}; the head, which "
            f"every process holds whole, {amount(head)}.",
            "",
            "| machine | stage | memory of a process | disk | network of a process | time | "
            "most of it |",
            "|---|---|---|---|---|---|---|",
        ]
        for machine in machines(here):
            lines += plan(shape, machine)
        lines.append("")
    return lines[:-1]


def amount(size: float) -> str:
    """Return bytes in words."""
    if size == 0:
        return "–"
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Return seconds in words."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
