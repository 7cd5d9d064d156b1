"""Time the streaming executor against ``cp`` and read its peak memory, on a generated checkpoint.

    python benchmarks/shards.py FOLDER [--gigabytes 10] [--repeats 3] [--norm none]

A mixture of experts in the shape of Qwen3-30B-A3B with fewer layers, bfloat16, in shards of about
2 GB, is written to FOLDER (kept for the next call). Then, ``repeats`` times and in turn, with the
source out of the page cache: ``cp`` of the shards, forced to disk, and the edit of every writer
along random directions in a process of its own. The disk must hold twice the size.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from costs import Shape
from safetensors.torch import save_file
from transformers import LlamaConfig, Qwen3MoeConfig

from obliteratus.directions.directions import Directions
from obliteratus.models.checkpoint import read_checkpoint, sample
from obliteratus.operator.bases import orthonormalise
from obliteratus.release.directions_file import save_directions

QWEN = Shape(
    "mixture",
    layers=48,
    width=2048,
    heads=32,
    kv_heads=4,
    head=128,
    mlp=0,
    vocabulary=151936,
    experts=128,
    active=8,
    expert_mlp=768,
)
"""That of Qwen3-30B-A3B."""
SHARD_BYTES = 2_000_000_000
CHILD = """
import json, resource, sys
from pathlib import Path
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.stream import stream
from obliteratus.release.directions_file import load_directions
model, directions, output, norm = sys.argv[1:]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
settings = settings_for("advanced", [f"edit.norm={norm}", "edit.strength=1"])
done = stream(model, Path(output), settings, load_directions(Path(directions)))
print(json.dumps({"seconds": done.seconds, "imports": before, "peak": peak(),
                  "matrices": len(done.receipt.records), "error": done.receipt.worst_error}))
"""


def main() -> None:
    """Generate, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--norm", default="none")
    asked = parser.parse_args()
    source = asked.folder / f"{asked.gigabytes:g}GB"
    if not (source / "model.safetensors.index.json").is_file():
        generate(source, sized(QWEN, asked.gigabytes))
        os.execv(sys.executable, [sys.executable, *sys.argv])  # a child inherits its parent's peak
    directions = asked.folder / f"{asked.gigabytes:g}GB.safetensors"
    n_layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    of = sample(read_checkpoint(source))
    save_directions(random_directions(replace(QWEN, layers=n_layers), of), directions)
    files = sorted(source.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files) / 1e9
    print(f"{size:.2f} GB in {len(files)} shards, {n_layers} layers of {QWEN.experts} experts")
    ratios: list[float] = []
    for _ in range(asked.repeats):
        forget(files)
        copied = copy(files, asked.folder / "copy")
        forget(files)
        output = asked.folder / "edited"
        command = [sys.executable, "-c", CHILD, source, directions, output, asked.norm]
        start = time.perf_counter()
        run = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
        whole = time.perf_counter() - start
        shutil.rmtree(output)
        done = json.loads(run.stdout.splitlines()[-1])
        ratios.append(copied / done["seconds"])
        print(
            f"cp {size / copied:.2f} GB/s; edit {size / done['seconds']:.2f} GB/s "
            f"({ratios[-1]:.0%} of cp; {copied / whole:.0%} with the start of Python); "
            f"{done['matrices']} matrices, worst error {done['error']:.1e}; peak "
            f"{done['peak']:.0f} MB, {done['imports']:.0f} MB of it imports",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.0%} of cp")


def sized(shape: Shape, gigabytes: float) -> Shape:
    """Return ``shape`` with as many layers as make about ``gigabytes`` in bfloat16."""
    ends = 2 * replace(shape, layers=0).parameters
    layer = 2 * replace(shape, layers=1).parameters - ends
    return replace(shape, layers=max(1, round((gigabytes * 1e9 - ends) / layer)))


def config_of(shape: Shape) -> LlamaConfig | Qwen3MoeConfig:
    """Return the configuration of a Llama of ``shape``, or of a mixture where it has experts."""
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
    }
    if not shape.experts:
        return LlamaConfig(**common, intermediate_size=shape.mlp)
    return Qwen3MoeConfig(
        **common,
        moe_intermediate_size=shape.expert_mlp,
        num_experts=shape.experts,
        decoder_sparse_step=1,
        tie_word_embeddings=False,
    )


def generate(folder: Path, shape: Shape) -> None:
    """Write a checkpoint of ``shape``; all matrices of one size have the same random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    config_of(shape).save_pretrained(folder)
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    drawn: dict[tuple[int, ...], torch.Tensor] = {}
    total = 0

    def flush() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, size in tensors(shape):
        if size not in drawn:
            drawn[size] = torch.randn(size).mul_(size[-1] ** -0.5).to(torch.bfloat16)
        shard[name] = drawn[size].clone()
        total += shard[name].nbytes
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            flush()
    if shard:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes as checkpoints of these architectures have them."""
    width, head = shape.width, shape.head
    yield "model.embed_tokens.weight", (shape.vocabulary, width)
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        rows = {"q": shape.heads * head, "k": shape.kv_heads * head, "v": shape.kv_heads * head}
        for name, count in rows.items():
            yield f"{block}.self_attn.{name}_proj.weight", (count, width)
        yield f"{block}.self_attn.o_proj.weight", (width, shape.heads * head)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{block}.{name}.weight", (width,)
        if not shape.experts:
            yield from _mlp(f"{block}.mlp", width, shape.mlp)
            continue
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            yield f"{block}.{name}.weight", (head,)
        yield f"{block}.mlp.gate.weight", (shape.experts, width)
        for expert in range(shape.experts):
            yield from _mlp(f"{block}.mlp.experts.{expert}", width, shape.expert_mlp)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (shape.vocabulary, width)


def _mlp(block: str, width: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, size in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
        yield f"{block}.{name}_proj.weight", size


def random_directions(shape: Shape, of: str) -> Directions:
    """Return one random direction for all layers and the embedding."""
    generator = torch.Generator().manual_seed(0)
    row = orthonormalise(torch.randn((1, shape.width), generator=generator, dtype=torch.float64))
    layers = ("embedding", *range(shape.layers))
    return Directions(
        basis=dict.fromkeys(layers, row),
        scale=dict.fromkeys(layers, 1.0),
        method="random",
        provenance={"sample": of},
    )


def copy(files: list[Path], folder: Path) -> float:
    """Return the seconds that ``cp`` takes, with the copies forced to disk."""
    folder.mkdir()
    start = time.perf_counter()
    subprocess.run(["cp", *map(str, files), str(folder)], check=True)
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    return seconds


def forget(files: list[Path]) -> None:
    """Drop the pages of ``files`` from the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
