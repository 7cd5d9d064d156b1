"""llama.cpp reads what was exported and says what transformers says of the same file.

Two bindings carry it: ``xllamacpp`` comes as a wheel and runs whole files, ``llama-cpp-python`` is
compiled on the spot and sets control vectors as well (tests/QUARANTINES.md).
"""

import ctypes
import importlib.util
import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from obliteratus.directions.directions import Directions
from obliteratus.edits.memory import excise
from obliteratus.models.catalogue import catalogue_entry
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block, block_output
from obliteratus.models.summon import summon
from obliteratus.models.wheels import wheel_files
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.hooks import adding
from obliteratus.operator.removal import everywhere, removal
from obliteratus.release.control_vector import export_control_vector
from obliteratus.release.gguf_export import export_gguf
from obliteratus.store import Store
from obliteratus.testing.tiny_gguf import LAYERS, WIDTH, tiny_gguf, tiny_llama

pytestmark = pytest.mark.real_model
CONTEXT = 64
MOST_KL = {"F32": 5e-6, "F16": 5e-5, "BF16": 1e-3, "Q8_0": 1e-2}
"""llama.cpp rounds what goes into a matrix to the kind of the matrix, transformers does not."""
PROMPTS = ((1, 40, 7, 99, 3), (1, 200, 12, 45, 45, 8), (1, 5))


def by_server(path: Path, prompts) -> torch.Tensor:
    """Log-probabilities of the next token, by the server inside xllamacpp."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = CONTEXT, 1, 0, False
    server = xllamacpp.Server(params)
    n_vocab = len(gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].data)
    # Probabilities are those before the bias. It is there because the server gives none with a
    # token that ends the text or a character's first byte.
    ask = {"n_predict": 1, "n_probs": n_vocab, "cache_prompt": False, "logit_bias": [["a", 1e3]]}
    found = torch.full((len(prompts), n_vocab), -math.inf)
    for row, ids in zip(found, prompts, strict=True):
        answer = server.handle_completions({**ask, "prompt": list(ids)})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[token["id"]] = token["logprob"]
    return found


def by_library(path: Path, prompts, vector: Path | None = None, scale: float = 1.0) -> torch.Tensor:
    """The same through llama.h, with a control vector read as llama.cpp's own programs read it."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_gpu_layers=0, logits_all=True, verbose=False, n_threads=1
    )
    if vector is not None:
        tensors = {each.name: each.data for each in gguf.GGUFReader(vector).tensors}
        width, n_layers = model.n_embd(), model.metadata["llama.block_count"]
        buffer = np.zeros((int(n_layers) - 1, width), dtype=np.float32)  # it begins with block 1
        for name, numbers in tensors.items():
            buffer[int(name.removeprefix("direction.")) - 1] = scale * numbers
        pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        context = model._ctx.ctx
        assert not llama_cpp.llama_set_adapter_cvec(
            context, pointer, buffer.size, width, 1, int(n_layers)
        )
    found: list[torch.Tensor] = []
    for ids in prompts:
        model.reset()
        model.eval(list(ids))
        found.append(torch.tensor(model.scores[len(ids) - 1]).log_softmax(-1))
    model.close()
    return torch.stack(found)


ENGINES = {"xllamacpp": by_server, "llama_cpp": by_library}


@pytest.fixture(params=list(ENGINES))
def llama_cpp_says(request):
    """Each binding that is installed."""
    return ENGINES[needed(request.param)]


def needed(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (tests/QUARANTINES.md says how)")
    return name


@torch.no_grad()
def ours(model: LoadedModel, prompts) -> torch.Tensor:
    """Log-probabilities of the next token after each prompt."""
    return torch.stack(
        [model.module(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in prompts]
    )


def worst_kl(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest KL of a first token, in nats."""
    wide, wide_other = one.double(), other.double()
    return float((wide.exp() * (wide - wide_other)).sum(-1).max())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def direction(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64)
    return row / row.norm()


@pytest.mark.parametrize(("kind", "is_tied"), [*((kind, False) for kind in MOST_KL), ("F16", True)])
def test_llama_cpp_runs_the_edited_file(tmp_path, store, llama_cpp_says, kind, is_tied, capsys):
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    tiny_gguf(old, tiny_llama(is_tied=is_tied), kind=kind)
    model = summon(str(old), store=store)
    plan = EditPlan(removal(model, everywhere(model, direction())))
    export_gguf(old, (plan,), new)
    unedited = ours(model, PROMPTS)
    excise(model, plan)
    here = ours(model, PROMPTS)
    kl, moved = worst_kl(here, llama_cpp_says(new, PROMPTS)), worst_kl(here, unedited)
    say(capsys, f"edited {kind} file: first-token KL {kl:.1e} (of the edit itself {moved:.1e})")
    assert kl < MOST_KL[kind] < 0.1 * moved


@pytest.mark.parametrize("layer", range(1, LAYERS))
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_block_i_of_llama_cpp_is_layer_i(tmp_path, store, layer, scale, capsys):
    """The same vector one block away gives other probabilities."""
    needed("llama_cpp")
    path = tiny_gguf(tmp_path / "old.gguf", tiny_llama(), kind="F32")
    found = Directions({layer: direction()}, {layer: 3.0}, "planted", source_layer=layer)
    export_control_vector(found, tmp_path / "v.gguf")
    there = by_library(path, PROMPTS, tmp_path / "v.gguf", scale)
    model = summon(str(path), store=store)
    kls: dict[int, float] = {}
    for other in range(LAYERS):
        with adding(model, other, scale * 3.0 * direction()[0]):
            kls[other] = worst_kl(ours(model, PROMPTS), there)
    shown = ", ".join(f"{other}: {kl:.1e}" for other, kl in kls.items())
    say(capsys, f"control vector of layer {layer}: first-token KL to ours by layer {shown}")
    assert kls.pop(layer) < MOST_KL["F32"]
    assert min(kls.values()) > 100 * MOST_KL["F32"]


LAYER = 15
TEXTS = ("How do I bake a loaf of bread?", "How do I pick the lock of my neighbour?", "Hello!")
REAL_KL = 2e-2
"""llama.cpp rounds activations to 8 bits in every matrix product with a Q8_0 matrix."""


def test_llama_cpp_runs_a_real_model_after_the_edit(tmp_path, store, llama_cpp_says, capsys):
    """A direction between two prompts is taken out of SmolLM2, stored as Q8_0."""
    original = wheel_files(catalogue_entry("smollm2-135m"), Store()) / "model.gguf"
    old, new = as_q8_0(original, tmp_path / "old.gguf"), tmp_path / "new.gguf"
    model = summon(str(old), store=store)
    prompts = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    plan = EditPlan(removal(model, everywhere(model, difference(model, *prompts[:2]))))
    worst = export_gguf(old, (plan,), new).worst
    unedited = ours(model, prompts)
    excise(model, plan)
    here = ours(model, prompts)
    kl, moved = worst_kl(here, llama_cpp_says(new, prompts)), worst_kl(here, unedited)
    say(
        capsys,
        f"SmolLM2-135M in Q8_0: first-token KL {kl:.1e} (of the edit itself {moved:.1e}); "
        f"remaining energy at most {worst.remaining:.1e} of a random direction's ({worst.tensor})",
    )
    assert kl < REAL_KL < 0.2 * moved
    assert worst.remaining < 1e-3


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


@torch.no_grad()
def difference(model: LoadedModel, one, other) -> torch.Tensor:
    """The unit difference of two prompts' last tokens at ``LAYER``."""
    seen: list[torch.Tensor] = []
    hook = block(model, LAYER).register_forward_hook(
        lambda _m, _a, out: seen.append(block_output(out)[0, -1].double())
    )
    with hook:
        for ids in (one, other):
            model.module(torch.tensor([ids]))
    row = seen[0] - seen[1]
    return (row / row.norm())[None]


def as_q8_0(source: Path, target: Path) -> Path:
    """A file's matrices as Q8_0, everything else as it was."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, value in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = value.types
            writer.add_key_value(name, value.contents(), kinds[0], kinds[-1])
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = gguf.GGMLQuantizationType.F32 if numbers.ndim == 1 else Q8_0
        writer.add_tensor(tensor.name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


Q8_0 = gguf.GGMLQuantizationType.Q8_0
