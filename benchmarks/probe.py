"""How fast PROBE is, beside what the machine's matrix products and a naive loop reach.

    python benchmarks/probe.py MODEL [--prompts N] [--naive N] [--threads N] [--batch-tokens N]

MODEL is a name of the catalogue, a Hub id, a folder or a .gguf file. PROBE runs the built-in fit
prompts, harmful and harmless. The matrix rate is torch.mm over all of the model's own linear layers
at PROBE's batch size, in this process, before and after PROBE (the best of all passes). PROBE's
rate counts the matrix products of unique, unpadded tokens only: the shared prefix once, then each
prompt's own tokens. The naive loop runs whole prompts, 16 at a time in their given
order, padded on the left, with logits and output_hidden_states=True.
"""

import argparse
import threading
import time
from dataclasses import dataclass

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.probe.capture import probe
from obliteratus.probe.forward import automatic_batch_tokens
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.split import split
from obliteratus.settings import ProbeSettings

MATRIX_OPERATIONS = ("mm", "addmm", "bmm", "_grouped_mm")
NAIVE_BATCH = 16
PASSES = 4


@dataclass
class PeakMemory:
    """The resident memory that a block takes above what the process had when it began, in bytes."""

    peak: int = 0

    def __enter__(self) -> "PeakMemory":
        process = psutil.Process()
        self._start = process.memory_info().rss
        self._is_over = threading.Event()

        def watch() -> None:
            while not self._is_over.wait(0.02):
                self.peak = max(self.peak, process.memory_info().rss - self._start)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def matrix_flops_per_token(model: LoadedModel, encoded: Encoded) -> float:
    """Return the floating-point operations of the backbone's matrix products, per token."""
    ids = torch.tensor([encoded.ids[0]], device=model.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.module.get_submodule(model.anatomy.backbone)(ids, use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    total = sum(n for op, n in counts.items() if str(op).split(".")[-1] in MATRIX_OPERATIONS)
    return total / ids.shape[1]


def matrix_rate(model: LoadedModel, rows: int) -> float:
    """Return the operations per second of torch.mm over every linear layer of the blocks, in order.

    One pass does for ``rows`` tokens what a forward pass does, and nothing between the products.
    """
    weights = [
        part.weight
        for name in model.anatomy.blocks
        for part in model.module.get_submodule(name).modules()
        if isinstance(part, nn.Linear)
    ]
    tokens = {
        d_in: torch.randn(rows, d_in, dtype=model.dtype, device=model.device)
        for d_in in {weight.shape[1] for weight in weights}
    }
    start = time.perf_counter()
    for weight in weights:
        torch.mm(tokens[weight.shape[1]], weight.t())
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return 2 * rows * sum(weight.numel() for weight in weights) / seconds


def naive(model: LoadedModel, encoded: Encoded) -> float:
    """Return the seconds that the naive loop takes."""
    start = time.perf_counter()
    for first in range(0, len(encoded), NAIVE_BATCH):
        rows = encoded.ids[first : first + NAIVE_BATCH]
        width = max(map(len, rows))
        ids = torch.tensor([(0,) * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad():
            output = model.module(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                output_hidden_states=True,
            )
        torch.stack([state[:, -1] for state in output.hidden_states]).float().cpu()
    return time.perf_counter() - start


def part_of(contrast: ContrastSet, count: int) -> ContrastSet:
    """Return about ``count`` prompts of both classes together, spread over the set; 0 for all."""
    step = max(1, 2 * len(contrast.harmful) // count) if count else 1
    return ContrastSet(
        contrast.name, contrast.harmful[::step], contrast.harmless[::step], contrast.is_paired
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Measure PROBE.")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=0, help="how many (0: all 1024)")
    parser.add_argument("--naive", type=int, default=64, help="prompts of the naive loop (0: none)")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    parser.add_argument("--batch-tokens", type=int, default=0, help="0: automatic")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = summon(options.model)
    contrast = part_of(split(refusal()).fit, options.prompts)
    prompts = [*contrast.harmful, *contrast.harmless]
    encoded = encode(model, [prompt.text for prompt in prompts])
    unique = encoded.shared_prefix + sum(len(ids) - encoded.shared_prefix for ids in encoded.ids)
    per_token = matrix_flops_per_token(model, encoded)
    batch_tokens = options.batch_tokens or automatic_batch_tokens(model)
    probe(model, part_of(contrast, 32))  # first use of a kernel is slower
    rates = [matrix_rate(model, batch_tokens) for _ in range(PASSES)]
    with PeakMemory() as memory:
        start = time.perf_counter()
        probe(model, contrast, ProbeSettings(batch_tokens=options.batch_tokens))
        seconds = time.perf_counter() - start
    rates += [matrix_rate(model, batch_tokens) for _ in range(PASSES)]
    rate = unique * per_token / seconds
    rows = {
        "model": options.model,
        "threads, load": f"{torch.get_num_threads()}, {psutil.getloadavg()[0]:.1f}",
        "prompts": f"{len(prompts)}",
        "tokens per prompt": f"{sum(map(len, encoded.ids)) / len(prompts):.1f}",
        "  of them not shared": f"{unique / len(prompts):.1f}",
        "batch": f"{batch_tokens} tokens",
        "PROBE": f"{len(prompts) / seconds:.1f} prompts/s",
        "  matrix products": f"{rate / 1e9:.0f} GFLOP/s",
        "torch.mm alone": f"{min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP/s",
        "  PROBE's share of it": f"{rate / max(rates):.0%}",
        "  peak memory": f"{memory.peak / 1e6:.0f} MB above the loaded model",
    }
    if options.naive:
        some = part_of(contrast, options.naive)
        chosen = encode(model, [prompt.text for prompt in (*some.harmful, *some.harmless)])
        with PeakMemory() as memory:
            naive_seconds = naive(model, chosen)
        rows["naive loop"] = f"{len(chosen) / naive_seconds:.1f} prompts/s"
        rows["  peak memory "] = f"{memory.peak / 1e6:.0f} MB above the loaded model"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    main()
