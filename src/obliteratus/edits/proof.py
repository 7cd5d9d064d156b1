"""Prove on the edited model that what was to be removed is gone: from tensors and from the stream.

A list of edited names proves nothing: a forgotten writer is not on it. These proofs read the
weights and run real tokens.
"""

import contextlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.edits.stream import removed_basis, same_space
from obliteratus.errors import EditError, LeakError
from obliteratus.models.anatomy import WeightSite
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import block_input, block_output
from obliteratus.operator.behind import post_norm_gain
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.grro import Operator, edit_matrix
from obliteratus.shapes import Layer

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 5e-3,
}
"""Largest residual that rounding explains, by the type in which weights and stream are stored: two
to ten times what exact edits of models with 135 and 494 million parameters leave."""
Measured = Literal["stream", "stream_minus_embedding", "writes"]


@dataclass(frozen=True)
class StreamProof:
    """The largest |R x| / |x| at every layer over all tokens, and of every write on its own.

    Several streams side by side are all looked at. What is written behind the last block is part of
    the last layer.

    ``measured`` says what x is: the stream where every writer was edited along the same space, the
    stream minus the embedding where the embedding was left, and ``writes`` (``layers`` is empty)
    where layers have different spaces or some were left, so that only each write can be clean.
    """

    measured: Measured
    layers: Mapping[Layer, float]
    writers: Mapping[str, float]
    tolerance: float

    @property
    def worst(self) -> float:
        """The largest residual that decides the proof."""
        return max((self.layers or self.writers).values(), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        layers = {str(layer): share for layer, share in self.layers.items()}
        return {**asdict(self), "layers": layers, "worst": self.worst}


def prove_tensors(
    model: LoadedModel, plan: EditPlan, *, allow_leak: bool = False
) -> dict[str, float]:
    """Return for each matrix edited at strength 1 what it still writes along the basis.

    ρ = ‖V W'‖ √(d_model / k) / ‖W'‖ over the k removed rows of V at unit length: 1 for a random
    direction, 0 for an exact removal. It also covers experts that no token was routed to, and the
    biases of LayerNorms behind the matrices, along the stream basis.

    Raises:
        LeakError: ρ exceeds the tolerance of the model's type (unless ``allow_leak``).
    """
    found: dict[str, float] = {}
    for edit in plan:
        is_removed = edit.strengths == 1
        if not bool(is_removed.any()) or edit.bias_shift is not None:
            continue
        rows = edit.read_basis[is_removed]
        look = Operator(
            edit.write_basis[is_removed], rows, torch.zeros(len(rows)), edit.site.layout
        )
        change = edit_matrix(model.module.get_parameter(edit.site.name).detach(), look)[1]
        expected = change.norm_after * math.sqrt(len(rows) / rows.shape[1])
        found[edit.site.name] = change.read_after / expected if expected else 0.0
        if edit.norm_bias is not None:
            found[edit.norm_bias] = _left_in_norm_bias(model, edit, edit.norm_bias)
    tolerance = tolerance_of(model)
    worst = max(found, key=found.__getitem__, default=None)
    if worst is not None and not found[worst] <= tolerance and not allow_leak:
        raise LeakError(
            f"{worst} still writes {found[worst]:.1e} of a random direction's share along what "
            f"was removed (at most {tolerance:.0e} in {model.dtype}).",
            "Excise the plan again, or pass --allow-leak (edit.allow_leak=true) to go on.",
        )
    return found


@torch.no_grad()
def prove_stream(
    model: LoadedModel,
    plan: EditPlan,
    prompts: Sequence[Sequence[int]],
    *,
    allow_leak: bool = False,
) -> StreamProof:
    """Run ``prompts`` (token ids) through the edited model and look for what was removed.

    Raises:
        LeakError: a residual exceeds the tolerance of the model's type (unless ``allow_leak``); it
            names the worst layer and the writer with the worst residual.
        EditError: there are no prompts, or nothing in the plan was to be removed entirely.
    """
    if not prompts:
        raise EditError("a proof needs prompts; give at least one.")
    bases = _module_bases(model, plan)
    if not bases:
        raise EditError("the plan removes nothing entirely (strength 1), so nothing can be proved.")
    measured, common = _claim(model, bases)
    watch = _Watch(common, subtracts_embedding=measured == "stream_minus_embedding")
    backbone = model.module.get_submodule(model.anatomy.backbone)
    with watch.on(model, bases):
        for ids in prompts:
            backbone(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    writers = {path: watch.writes[path] for path in bases if path in watch.writes}
    proof = StreamProof(measured, watch.layers, writers, tolerance_of(model))
    if not proof.worst <= proof.tolerance and not allow_leak:
        raise LeakError(
            _leak(proof, model),
            f"Check models/families/{model.anatomy.family}.py, or pass --allow-leak "
            "(edit.allow_leak=true) to go on.",
        )
    return proof


def _left_in_norm_bias(model: LoadedModel, edit: WeightEdit, name: str) -> float:
    bias = model.module.get_parameter(name).detach().to("cpu", torch.float64)
    basis = removed_basis(model, edit)
    assert basis is not None  # asked only where something was removed
    expected = float(bias.norm()) * math.sqrt(len(basis) / len(bias))
    return float((basis @ bias).norm()) / expected if expected else 0.0


def tolerance_of(model: LoadedModel) -> float:
    """Return the largest residual that rounding explains in ``model``'s type.

    Raises:
        EditError: none is known for the type.
    """
    if model.dtype not in TOLERANCE:
        raise EditError(f"no tolerance is known for {model.dtype}; load the model in bfloat16.")
    return TOLERANCE[model.dtype]


def _module_bases(
    model: LoadedModel, plan: EditPlan
) -> dict[str, tuple[WeightSite, Float64[Tensor, "rank d_model"]]]:
    writers = (edit for edit in plan if edit.site.role == "writer")
    found = ((edit.site, removed_basis(model, edit)) for edit in writers)
    return {site.module: (site, basis) for site, basis in found if basis is not None}


def _claim(
    model: LoadedModel, bases: Mapping[str, tuple[WeightSite, Tensor]]
) -> tuple[Measured, Tensor | None]:
    """Say what can be clean, and along which space; None where each write has its own."""
    missing = [site for site in model.anatomy.writers if site.module not in bases]
    first = next(iter(bases.values()))[1]
    is_common = all(same_space(first, basis) for _, basis in bases.values())
    is_mixed = bool(missing) and model.anatomy.streams is not None  # what is left comes back scaled
    if not is_common or is_mixed or any(site.layer is not None for site in missing):
        return "writes", None
    return ("stream_minus_embedding" if missing else "stream"), first


@dataclass
class _Watch:
    """Collects the worst residuals of one model's forward passes."""

    common: Float64[Tensor, "rank d_model"] | None
    subtracts_embedding: bool
    layers: dict[Layer, float] = field(default_factory=dict)
    writes: dict[str, float] = field(default_factory=dict)
    _embedding: Tensor | None = None

    @contextlib.contextmanager
    def on(
        self, model: LoadedModel, bases: Mapping[str, tuple[WeightSite, Tensor]]
    ) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            for path, (site, basis) in bases.items():
                place, gain = path, None
                if site.post_norm is not None and site.post_norm.kind == "layer":
                    place = site.post_norm.name.rpartition(".")[0]  # its bias is part of the write
                elif site.post_norm is not None:
                    gain = post_norm_gain(model, site)
                module = model.module.get_submodule(place)
                hook = self._write_hook(path, basis, gain)
                stack.callback(module.register_forward_hook(hook).remove)
            for layer, path in enumerate(model.anatomy.blocks if self.common is not None else ()):
                block = model.module.get_submodule(path)
                stack.callback(block.register_forward_hook(self._block_hook(layer)).remove)
                if layer == 0:
                    handle = block.register_forward_pre_hook(self._start, with_kwargs=True)
                    stack.callback(handle.remove)
            if self.common is not None and model.anatomy.closing_writers:
                norm = model.module.get_submodule(str(model.anatomy.final_norm))
                hook = self._end_hook(model.anatomy.n_layers - 1)
                stack.callback(norm.register_forward_pre_hook(hook).remove)
            yield

    def _write_hook(self, path: str, basis: Tensor, gain: Tensor | None) -> Any:
        def hook(_module: object, _args: object, output: Any) -> None:
            write = _exact(output)
            self._note(self.writes, path, write if gain is None else write * gain, basis)

        return hook

    def _start(self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._embedding = _exact(block_input(args, kwargs))
        if not self.subtracts_embedding and self.common is not None:
            self._note(self.layers, "embedding", self._embedding, self.common)

    def _block_hook(self, layer: int) -> Any:
        def hook(_module: object, _args: object, output: Any) -> None:
            stream = _exact(output)
            if self.subtracts_embedding and self._embedding is not None:
                stream = stream - self._embedding
            if self.common is not None:
                self._note(self.layers, layer, stream, self.common)

        return hook

    def _end_hook(self, layer: int) -> Any:
        def hook(_module: object, args: tuple[Any, ...]) -> None:
            if self.common is not None:
                self._note(self.layers, layer, _exact(args[0]), self.common)

        return hook

    def _note(self, notes: dict[Any, float], key: object, x: Tensor, basis: Tensor) -> None:
        size = torch.linalg.vector_norm(x, dim=-1)
        along = torch.linalg.vector_norm(x @ basis.T, dim=-1)
        shares = along / size.clamp_min(torch.finfo(size.dtype).tiny)
        share = float(shares.nan_to_num(nan=math.inf).max())
        notes[key] = max(notes.get(key, 0.0), share)


def _exact(output: Any) -> Tensor:
    return block_output(output).detach().to("cpu", torch.float64)


def _leak(proof: StreamProof, model: LoadedModel) -> str:
    writer = max(proof.writers, key=proof.writers.__getitem__)
    where = ""
    if proof.layers:
        layer = max(proof.layers, key=proof.layers.__getitem__)
        where = f"at layer {layer} of the {proof.measured.replace('_', ' ')}; "
    cause = (
        f"the worst writer is {writer} with {proof.writers[writer]:.1e}"
        if proof.writers[writer] > proof.tolerance
        else "every declared writer is clean, so something undeclared writes to the stream"
    )
    return (
        f"{proof.worst:.1e} of the stream is left along the removed directions {where}{cause} (at "
        f"most {proof.tolerance:.0e} in {model.dtype})."
    )
