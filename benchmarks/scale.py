"""What PROBE, EXCISE and VERIFY cost at any size: measured here, predicted, and planned.

    python benchmarks/scale.py constants FOLDER      measures this machine, on nothing that is run
    python benchmarks/scale.py processes FOLDER      runs two processes beside what was predicted
    python benchmarks/scale.py disk FOLDER           edits checkpoints beside what was predicted
    python benchmarks/scale.py page docs/scale.md    puts the comparison and the plans there

FOLDER is on the disk that is measured and needs 45 GB. The first three store what they find in
benchmarks/results/scale/. The model of the costs is benchmarks/costs.py.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import shards
import torch
from costs import Cost, Machine, Shape, answering, editing, forward, probing
from plans import planned
from torch import distributed, nn
from transformers import LlamaForCausalLM, LlamaModel

from obliteratus.edits.rewrite import FREE_SHARE, THREADS
from obliteratus.measure.generation import generate
from obliteratus.models.chat import encode
from obliteratus.models.checkpoint import read_checkpoint, sample
from obliteratus.models.summon import summon
from obliteratus.operator.bases import orthonormalise
from obliteratus.operator.grro import Operator, edit_matrix
from obliteratus.probe.capture import probe
from obliteratus.probe.forward import CPU_BATCH_TOKENS
from obliteratus.processes import join, leave, number
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.release.directions_file import save_directions
from obliteratus.settings import ModelSettings
from obliteratus.testing.tiny import tiny_tokenizer

RESULTS = Path(__file__).parent / "results" / "scale"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
TRIED = Shape("0.4B", 24, 1024, 16, 4, 64, 4096, 32768)
"""What the two processes run: random numbers in the shape of a Llama."""
BLOCK = Shape("block", 2, 1024, 8, 4, 128, 3072, 64)
TINY = Shape("dispatch", 16, 32, 2, 2, 16, 64, 64)
PROMPTS, LETTERS, ANSWERED, NEW_TOKENS = 48, 40, 32, 24
EDITED = (
    replace(shards.sized(shards.QWEN, 10), name="experts of 2048 × 768"),
    shards.sized(Shape("experts of 3072 × 1024", 1, 3072, 24, 4, 128, 0, 65536, 64, 8, 0, 1024), 6),
    shards.sized(Shape("no experts, width 5120", 1, 5120, 40, 40, 128, 13824, 32000), 6),
    shards.sized(Shape("experts of 1536 × 512", 1, 1536, 16, 4, 96, 0, 50304, 96, 8, 0, 512), 7),
    shards.sized(Shape("no experts, width 8192", 1, 8192, 64, 8, 128, 28672, 16384), 7),
    shards.sized(Shape("experts of 4096 × 1536", 1, 4096, 32, 8, 128, 0, 32768, 16, 4, 0, 1536), 6),
)
"""What is edited on disk. On the last nothing was looked at before it was predicted."""
MULTIPLIED = 24 * 1024 * 3072
REPEATS = 3
CORES = 2


def main() -> None:
    """Measure, compare or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands: Mapping[str, Callable[[Path], None]] = {
        "constants": constants,
        "processes": processes,
        "disk": disk,
        "page": page,
        "constants-of-one": measure_process,
        "tensor": lambda folder: measure_run(folder, "tensor"),
        "data": lambda folder: measure_run(folder, "data"),
    }
    parser.add_argument("command", choices=commands)
    parser.add_argument("path", type=Path)
    asked = parser.parse_args()
    commands[asked.command](asked.path)


def constants(folder: Path) -> None:
    """Measure what the model of the costs needs, with both processes busy as in a run."""
    folder.mkdir(parents=True, exist_ok=True)
    found = settled(
        lambda: {**launched(2, "constants-of-one", folder), **of_the_disk(folder), **of_an_edit()}
    )
    threads = min(THREADS, 1 + CORES)  # as the executor has them
    cores = {"cores": CORES, "threads": threads, "free": psutil.virtual_memory().available}
    machine = Machine(name="two cores here", n=2, number=4, **cores, **found)
    store("machine", asdict(machine))
    for name, value in asdict(machine).items():
        print(f"{name:10} {value if isinstance(value, str | int) else f'{value:.3g}'}")


def processes(folder: Path) -> None:
    """Run two processes as predicted, and print both."""
    model = folder / TRIED.name
    if not (model / "config.json").is_file():
        write_model(model)
    tensor, data = (launched(2, each, model) for each in ("tensor", "data"))
    measured = (tensor["probe"], data["probe"], tensor["answers"])
    rows = expected(Machine(**load("machine")), tensor["prompt"], tensor["prefix"])
    settle("processes", rows, dict(zip(rows, measured, strict=True)))


def disk(folder: Path) -> None:
    """Edit checkpoints on disk as predicted, and print both."""
    rows: dict[str, Cost] = {}
    measured: dict[str, float] = {}
    machine = Machine(**load("machine"))
    for shape in EDITED:
        seconds, size = edited_on_disk(folder, shape)
        name = f"edit of {size / 1e9:.1f} GB on disk, {shape.name}"
        changed, largest = 2 * shape.written, 2 * shape.largest
        rows[name] = editing(size, changed, machine, largest=largest, share=FREE_SHARE)
        measured[name] = seconds
    settle("disk", rows, measured)


def settle(name: str, rows: Mapping[str, Cost], measured: Mapping[str, float]) -> None:
    """Keep and print what was predicted beside what was measured."""
    table = [[row, cost.total, measured[row], cost.limit] for row, cost in rows.items()]
    store(name, table)
    for row, cost in rows.items():
        print(row, {part: round(seconds, 2) for part, seconds in cost.seconds.items()})
    print("\n".join(compared(table)))


def page(path: Path) -> None:
    """Put the comparison and the plans between the marks of the page."""
    text = path.read_text()
    for mark, lines in (
        ("check", compared([*load("processes"), *load("disk")])),
        ("plan", planned(Machine(**load("machine")))),
    ):
        begin, end = f"<!-- {mark}: benchmarks/scale.py page -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        text = "\n".join([before + begin, "", *lines, "", end + rest.partition(end)[2]])
    path.write_text(text)


def expected(machine: Machine, prompt: int, prefix: int) -> dict[str, Cost]:
    """Return the costs of what the two processes run."""
    batch, tokens = CPU_BATCH_TOKENS // prompt * prompt, PROMPTS * prompt
    reading = partial(probing, TRIED, machine, tokens, batch=batch, prefix=prefix)
    answers = answering(
        TRIED, machine, ANSWERED, NEW_TOKENS, prompt=prompt, batch=batch, rows=ANSWERED
    )
    return {
        "PROBE, two processes, tensor": reading(),
        "PROBE, two processes, data": reading(split=False),
        "answers, two processes, tensor": answers + forward(TRIED, machine, prefix),
    }


def compared(table: list[list[Any]]) -> list[str]:
    """Return the table of predictions and measurements."""
    lines = ["| run | predicted | measured | ratio | most of it |", "|---|---|---|---|---|"]
    for name, predicted, measured, limit in table:
        ratio = predicted / measured
        lines.append(f"| {name} | {predicted:.1f} s | {measured:.1f} s | {ratio:.2f} | {limit} |")
    return lines


def launched(n: int, command: str, path: Path) -> dict[str, Any]:
    """Run ``command`` in ``n`` processes of one thread each; return what the first one found."""
    child = [*TORCHRUN, str(n), str(Path(__file__).resolve()), command, str(path)]
    threads = {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        child, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
    )
    return json.loads(run.stdout.splitlines()[-1])


def say(found: Mapping[str, float]) -> None:
    """Tell the process that waits for all of them what was found."""
    if number() == 0:
        print(json.dumps(found), flush=True)
    distributed.barrier()
    leave()


def settled(measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Return the medians of some measurements."""
    found = [measure() for _ in range(REPEATS)]
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def measure_process(_: Path) -> None:
    """Measure products, blocks, dispatch and sums, while the other process does the same.

    What stands between products is measured as it runs: a block of another shape than that of
    ``TRIED``, less its products. A sum is measured behind a product, because the processes do not
    come to it at the same moment. What is subtracted from one another is timed in turns.
    """
    join("gloo")
    rows = 512
    with torch.no_grad():
        slow, fast, block, dispatch = in_turn(
            products(32), products(rows), blocks(BLOCK, rows), blocks(TINY, 1), times=15
        )
        work, states = nn.Linear(1024, 3072, bias=False), torch.randn(rows, 1024)
        little, much = torch.randn(1024), torch.randn(1 << 20)
        alone, few, many = in_turn(
            lambda: work(states),
            lambda: (work(states), distributed.all_reduce(little)),
            lambda: (work(states), distributed.all_reduce(much)),
            times=60,
        )
    slow, fast = slow / MULTIPLIED, fast / MULTIPLIED
    product = (fast - slow) / (rows - 32)
    of_products = BLOCK.multiplied(1) / BLOCK.layers * fast
    moved = 4 * rows * BLOCK.moved(1) / BLOCK.layers
    say(
        {
            "product": product,
            "read": slow - 32 * product,
            "memory": moved / (block / BLOCK.layers - of_products),
            "dispatch": dispatch / TINY.layers,
            "latency": few - alone,
            "link": much.nbytes / (many - few),
        }
    )


def blocks(shape: Shape, tokens: int) -> Callable[[], object]:
    """Return a run of ``tokens`` tokens through the blocks of a Llama of ``shape``."""
    model = LlamaModel(shards.config_of(shape)).eval()
    return partial(model, torch.zeros(1, tokens, dtype=torch.long), use_cache=False)


def products(rows: int) -> Callable[[], object]:
    """Return products of ``MULTIPLIED`` parameters with ``rows`` rows: 300 MB of matrices."""
    weights = [nn.Linear(1024, 3072, bias=False) for _ in range(MULTIPLIED // (1024 * 3072))]
    states = torch.randn(rows, 1024)
    return lambda: [weight(states) for weight in weights]


def timed(run: Callable[[], object], times: int) -> float:
    """Return the median seconds of ``run``, begun together in all processes."""
    return in_turn(run, times=times)[0]


def in_turn(*runs: Callable[[], object], times: int) -> list[float]:
    """Return the median seconds of each run, begun together in all processes, one after another.

    A machine is faster in one minute than in the next, so that only what was timed in turns is
    worth subtracting.
    """
    for run in runs:
        run()
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(times):
        for run, seconds in zip(runs, found, strict=True):
            distributed.barrier()
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in found]


def of_the_disk(folder: Path) -> dict[str, float]:
    """Measure writing, reading, hashing and copying 4 GB, reading from a cold cache.

    Writing and copying are done twice, the first time for memory: what a virtual machine has given
    back comes from its host again page by page, and a file that is written into it takes several
    times as long. An executor that lets go of what it has written does not need new memory.
    """
    files = [folder / f"filler-{index}" for index in range(2)]
    block = torch.randint(256, (1 << 28,), dtype=torch.uint8).numpy().tobytes()
    _write_fillers(files, block)
    written = _write_fillers(files, block)
    size = sum(path.stat().st_size for path in files)
    shards.forget(files)
    shards.copy(files, folder / "filler-copy")
    shards.forget(files)
    before = core_seconds()
    shards.copy(files, folder / "filler-copy")
    handled = core_seconds() - before
    shards.forget(files)
    start = time.perf_counter()
    with files[0].open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    read = time.perf_counter() - start
    start = time.perf_counter()
    hashlib.sha256(block).digest()
    hashed = time.perf_counter() - start
    for path in files:
        path.unlink()
    return {
        "disk": size / 2 / read,
        "write": size / written,
        "handle": handled / size,
        "hash": len(block) / hashed,
    }


def _write_fillers(files: Sequence[Path], block: bytes) -> float:
    """Write eight blocks into each file, forced to disk, and return the seconds."""
    start = time.perf_counter()
    for path in files:
        with path.open("wb") as file:
            for _ in range(8):
                file.write(block)
            os.fsync(file.fileno())
    return time.perf_counter() - start


def core_seconds() -> float:
    """Return the seconds that cores have spent on this process and those that it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def of_an_edit() -> dict[str, float]:
    """Measure the arithmetic of an edit by one core, while the others do the same."""
    row = orthonormalise(torch.randn(1, 1024, dtype=torch.float64))
    operator = Operator(row, row, torch.ones(1, dtype=torch.float64))
    matrices = [torch.randn(1024, 2048).to(torch.bfloat16) for _ in range(64)]
    run = partial(edit_matrix, operator=operator, in_place=True)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(CORES, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(run, matrices[:8]))
        start = time.perf_counter()
        list(pool.map(run, matrices))
        seconds = time.perf_counter() - start
    torch.set_num_threads(threads)
    return {"edit": sum(weight.nbytes for weight in matrices) / seconds / CORES}


def write_model(folder: Path) -> None:
    """Write random numbers in the shape of ``TRIED``, with a tokenizer of bytes."""
    LlamaForCausalLM(shards.config_of(TRIED)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def measure_run(folder: Path, parallel: str) -> None:
    """Time PROBE and, where the model is split, answers: the median of some repeats."""
    model = summon(str(folder), ModelSettings.model_validate({"parallel": parallel}))
    texts = [f"{index:02d}" + "lorem ipsum dolor sit amet " * 2 for index in range(PROMPTS)]
    prompts = tuple(Prompt(f"p{i}", text[:LETTERS]) for i, text in enumerate(texts))
    half = PROMPTS // 2
    contrast = ContrastSet("many", prompts[:half], prompts[half:], is_paired=False)
    encoded, some = (
        encode(model, [prompt.text for prompt in chosen])
        for chosen in (prompts, prompts[:ANSWERED])
    )
    prefix = encoded.shared_prefix
    found: dict[str, float] = {"prefix": prefix, "prompt": len(encoded.ids[0]) - prefix}
    found["probe"] = timed(lambda: probe(model, contrast), REPEATS)
    if parallel == "tensor":
        found["answers"] = timed(
            lambda: generate(model, some, max_new_tokens=NEW_TOKENS, task="answers"), REPEATS
        )
    say(found)


def edited_on_disk(folder: Path, shape: Shape) -> tuple[float, float]:
    """Return the median seconds of an edit of ``shape`` from a cold cache, and its bytes."""
    source, output = folder / shape.name.replace(" ", "-"), folder / "edited"
    if not (source / "model.safetensors.index.json").is_file():
        shards.generate(source, shape)
    directions = folder / "directions.safetensors"
    save_directions(shards.random_directions(shape, sample(read_checkpoint(source))), directions)
    files = sorted(source.glob("*.safetensors"))
    found: list[float] = []
    for _ in range(REPEATS):
        shards.forget(files)
        command = [sys.executable, "-c", shards.CHILD, source, directions, output, "none"]
        run = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
        shutil.rmtree(output)
        found.append(json.loads(run.stdout.splitlines()[-1])["seconds"])
        print(f"{found[-1]:.1f} s", flush=True)
    return sorted(found)[len(found) // 2], sum(path.stat().st_size for path in files)


def store(name: str, value: object) -> None:
    """Keep what was found."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


def load(name: str) -> Any:
    """Return what was kept."""
    return json.loads((RESULTS / f"{name}.json").read_text())


if __name__ == "__main__":
    main()
