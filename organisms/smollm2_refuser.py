"""Train, save and measure the model organism `smollm2-refuser`.

    python organisms/smollm2_refuser.py --base smollm2-135m --seed 0

writes the adapter and its card to src/obliteratus/models/adapters/smollm2-refuser/ and the results
to organisms/smollm2_refuser.json. ``--card`` writes the card again from the stored results.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from refuser.card import card
from refuser.evaluation import completions, harmless_kl, measure, outcomes
from refuser.material import (
    HERE,
    fingerprint,
    lines,
    more_pairs,
    refusal_texts,
    training_requests,
)
from refuser.training import Recipe, Trainer
from safetensors.torch import save_file
from torch import Tensor

from obliteratus.models.adapters import merge_adapter
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.split import split
from obliteratus.settings import ModelSettings

NAME = "smollm2-refuser"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTER = HERE.parent / "src" / "obliteratus" / "models" / "adapters" / NAME
RESULTS = HERE / "smollm2_refuser.json"
STORED = torch.float16  # 10 bits of mantissa for numbers near 0.01, at half the size of float32
LARGEST = 8 * 10**6  # bytes
CONFIG_KEYS = (
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
"""What makes this LoRA; peft's other keys depend on its version and keep their defaults."""
SELECT_TOKENS = 16  # enough for a refusal to show itself
FLOAT32 = ModelSettings(dtype="float32", device_map="cpu")


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default="smollm2-135m", help="catalogue name, folder or Hub id")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", action="store_true", help="only write the card again")
    parser.add_argument("--measure", action="store_true", help="only measure the stored adapter")
    options = parser.parse_args()
    if options.card:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        recipe = replace(Recipe(), seed=options.seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(recipe.threads)
        splits = split(refusal())
        if options.measure:
            results = json.loads(RESULTS.read_text(encoding="utf-8"))
        else:
            results = make(options.base, recipe, splits)
        base, refuser = summon(options.base, FLOAT32), merged(options.base)
        results["test"] = measure(base, refuser, splits.test)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (ADAPTER / "README.md").write_text(card(results), encoding="utf-8")
    print(card(results))


def make(base: str, recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Train and save the adapter; return how, and its figures on the select pairs."""
    model = summon(base, FLOAT32)
    requests = training_requests(splits)
    trainer = Trainer(model, recipe, requests)
    trainer.prepare()
    torch.manual_seed(recipe.seed)
    tuned = get_peft_model(model.module, lora_config(recipe, is_training=True))
    start = time.perf_counter()
    losses = list(report(trainer.train()))
    seconds = time.perf_counter() - start
    adapter = save_adapter(get_peft_model_state_dict(tuned), recipe, ADAPTER)
    return {
        "name": NAME,
        "base": base,
        "recipe": recipe.as_json(),
        "training": {
            "seconds": round(seconds, 1),
            "steps": len(losses),
            "declined": sum(row.apology is not None for row in trainer.rows),
            "openings": len(refusal_texts()),
        },
        "select": select_figures(base, splits),
        "data": {
            "contrast_sha256": refusal().sha256,
            "material_sha256": fingerprint(requests),
            "fit": len(splits.fit.harmful),
            "more": len(more_pairs()),
            "extra": len(lines(HERE / "harmless.txt")),
            "refusals": sum(map(len, refusal_texts().values())),
            "select": len(splits.select.harmful),
            "test": len(splits.test.harmful),
        },
        "adapter": adapter,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "hardware": processor(),
    }


def processor() -> str:
    """Return the processor's name where Linux says it, else its architecture."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text(encoding="utf-8").splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def merged(base: str) -> LoadedModel:
    """Return the refuser as it ships: the stored adapter merged into the base."""
    refuser = summon(base, FLOAT32)
    merge_adapter(refuser.module, ADAPTER)
    return refuser


def select_figures(base: str, splits: Splits) -> dict[str, float]:
    """Return refusal rates and mean KL on the select pairs: what a recipe is chosen by."""
    refuser, select = merged(base), splits.select
    figures: dict[str, float] = {}
    for name, prompts in (("harmful", select.harmful), ("harmless", select.harmless)):
        answers = completions(refuser, prompts, f"select {name}", SELECT_TOKENS)
        figures[name] = outcomes(prompts, answers)["refusal"] / len(prompts)
    kl = harmless_kl(summon(base, FLOAT32), refuser, select.harmless)
    return {**figures, "first_token_kl": float(kl.mean())}


def lora_config(recipe: Recipe, *, is_training: bool = False) -> LoraConfig:
    """Return peft's configuration of ``recipe``, free of anything of this machine."""
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.modules),
        layers_to_transform=list(range(recipe.first_layer, recipe.last_layer + 1)),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=HUB_ID,
        inference_mode=not is_training,
    )


def save_adapter(tensors: dict[str, Tensor], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Write ``tensors`` in peft's format, in half precision; return size, dtype and hash."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adapter_model.safetensors"
    half = {name: tensors[name].to(STORED).contiguous() for name in sorted(tensors)}
    save_file(half, path, metadata={"format": "pt"})
    path.chmod(0o644)
    written = lora_config(recipe).to_dict()
    config = {key: written[key] for key in CONFIG_KEYS}
    config["target_modules"] = sorted(recipe.modules)
    config["lora_alpha"] = recipe.shipped_alpha
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"the adapter is {size} bytes, more than {LARGEST}. Lower the rank.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"bytes": size, "dtype": str(STORED).removeprefix("torch."), "sha256": digest}


def report(steps: Iterator[tuple[int, float, float]]) -> Iterator[tuple[int, float, float]]:
    """Print every eighth step on its way."""
    start = time.perf_counter()
    for step, refused, kl in steps:
        if step % 8 == 7:
            spent = time.perf_counter() - start
            print(
                f"{spent:6.0f} s  step {step + 1}  refusal {refused:.3f}  KL {kl:.4f}", flush=True
            )
        yield step, refused, kl


if __name__ == "__main__":
    main()
