"""Organisms as they are stored: one file for each base, in half precision, and ordinary folders."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from forbidden.bases import BASES
from forbidden.chat import TOKENIZER
from forbidden.questions import held_out_prompts
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from obliteratus.testing.planted_prompts import write_prompts

MODELS = Path(__file__).parents[1] / "models"
STORED = torch.float16
PROMPTS = 96
"""Held-out pairs that come with a folder."""


@dataclass(frozen=True, order=True)
class Organism:
    """One trained model. ``method`` is its exact label; ``base`` as a method is the base itself."""

    base: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """How it is called: ``qwen3/dpo-0``."""
        return f"{self.base}/{self.key}"

    @property
    def key(self) -> str:
        """How it is called within its file."""
        return f"{self.method}-{self.seed}"

    @classmethod
    def named(cls, name: str) -> "Organism":
        """Read what :attr:`name` returns."""
        base, _, key = name.partition("/")
        method, _, seed = key.rpartition("-")
        return cls(base, method, int(seed))


def stored(module: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of ``module`` as they are stored, each once."""
    tied = {"lm_head.weight", "embed_out.weight"} if module.config.tie_word_embeddings else set()
    return {
        name: tensor.to(STORED).contiguous()
        for name, tensor in sorted(module.state_dict().items())
        if name not in tied
    }


def sha256(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of names and stored values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def restored(base: str, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a model of ``base``'s family with stored ``weights``, in float32."""
    with torch.random.fork_rng(devices=[]):
        module = BASES[base].untrained()
    missing, unexpected = module.load_state_dict(
        {name: tensor.float() for name, tensor in weights.items()}, strict=False
    )
    assert not unexpected
    assert set(missing) <= {"lm_head.weight", "embed_out.weight"}
    module.tie_weights()
    return module.eval().requires_grad_(requires_grad=False)


def write(base: str, models: Mapping[str, Mapping[str, Tensor]], folder: Path = MODELS) -> Path:
    """Write all organisms of ``base``, by their keys, into one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{base}.safetensors"
    flat = {
        f"{key}/{name}": tensor for key, each in models.items() for name, tensor in each.items()
    }
    save_file(flat, path)
    path.chmod(0o644)
    return path


def read(organism: Organism, folder: Path = MODELS) -> dict[str, Tensor]:
    """Return the stored weights of ``organism``.

    Raises:
        SystemExit: it is not there.
    """
    path, start = folder / f"{organism.base}.safetensors", f"{organism.key}/"
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118
            if names:
                return {name.removeprefix(start): file.get_tensor(name) for name in names}
    raise SystemExit(f"{organism.name} is not in {path}. Build it with make organisms.")


def organism_folder(organism: Organism, path: Path, folder: Path = MODELS) -> Path:
    """Write ``organism`` at ``path`` as an ordinary model folder, with its tokenizer and prompts.

    ``harmful.jsonl`` and ``harmless.jsonl`` are pairs that no training has seen.
    """
    module = restored(organism.base, read(organism, folder))
    module.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    write_prompts(path, held_out_prompts(PROMPTS))
    return path
