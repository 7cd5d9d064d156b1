"""PROBE: the residual stream of every prompt, after every block, at chosen positions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from obliteratus.errors import MeasurementError, UsageError
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.probe.activations import Activations, ClassActivations, Moments, PromptClass
from obliteratus.probe.forward import Batch, forward_batches
from obliteratus.probe.moments import MomentsAccumulator
from obliteratus.processes import gathered
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.settings import ProbeSettings
from obliteratus.shapes import Layer

DEFAULTS = ProbeSettings()


def probe(
    model: LoadedModel,
    contrast: ContrastSet,
    settings: ProbeSettings = DEFAULTS,
    *,
    system: str | None = None,
    keep: Literal["moments", "prompts"] = "prompts",
) -> Activations:
    """Return the residual stream of both classes, after every block and after the embedding.

    Layer i is the output of block i before the final norm, so the last layer is not what
    transformers calls the last hidden state. Positions are the last token, or every template token
    after the user's text (``settings.positions``). Both classes run together, so that they share
    one prefix and are treated alike. ``keep="prompts"`` keeps every prompt's activations (float32,
    prompts x positions x layers x d_model values); moments are accumulated in float64 either way,
    from the activations in the model's own precision. The processes of a data-parallel run share
    the prompts, and each returns what all have read.

    Raises:
        UsageError: post-instruction positions are asked of a model without a chat template.
        MeasurementError: a class is empty, an activation is not finite (the layer and the prompt
            are named), or one prompt alone does not fit into memory.
    """
    for name, prompts in (("harmful", contrast.harmful), ("harmless", contrast.harmless)):
        if not prompts:
            raise MeasurementError(f"the set '{contrast.name}' has no {name} prompts to probe.")
    prompts = (*contrast.harmful, *contrast.harmless)
    encoded = encode(model, [prompt.text for prompt in prompts], system=system)
    positions = _positions(model, encoded, settings)
    layers: tuple[Layer, ...] = ("embedding", *range(model.anatomy.n_layers))
    harmful = _Collector(contrast.harmful, layers, keep == "prompts")
    harmless = _Collector(contrast.harmless, layers, keep == "prompts")
    with capture(model, layers) as stream:
        batches = forward_batches(
            model, encoded, batch_tokens=settings.batch_tokens, task="probe", is_shared=True
        )
        for batch, _ in batches:
            for layer in layers:
                chosen = _at_positions(stream[layer], batch, positions)
                _check_finite(chosen, layer, [prompts[row] for row in batch.rows])
                harmful.add(layer, chosen, batch.rows)
                harmless.add(layer, chosen, [row - len(contrast.harmful) for row in batch.rows])
    if model.parallel == "data":
        harmful, harmless = harmful.with_others(), harmless.with_others()
    return Activations(
        harmful=harmful.result(),
        harmless=harmless.result(),
        positions=positions,
        is_paired=contrast.is_paired,
        fingerprint=model.source.fingerprint,
    )


@torch.no_grad()
def last_states(
    model: LoadedModel, activations: Activations, side: PromptClass
) -> Float[Tensor, "prompt d_model"]:
    """Return what the head reads at each prompt's last token, without running the model again.

    It is the final norm of what was kept after the last block, so it equals
    :func:`obliteratus.probe.forward.last_hidden` up to rounding.

    Raises:
        MeasurementError: only moments were kept, the activations are of another model, or something
            writes to the stream between the last block and the final norm.
    """
    if activations.fingerprint != model.source.fingerprint:
        raise MeasurementError(
            f"the activations are not of {model.source.asked}; probe that model."
        )
    if model.anatomy.closing_writers:
        raise MeasurementError(
            f"the final norm of {model.source.asked} reads more than the stream behind the last "
            "block, which is all that was kept. Run the prompts through last_hidden."
        )
    kept = getattr(activations, side).kept
    if not kept:
        raise MeasurementError('the prompts were probed as moments only; use keep="prompts".')
    states = kept[model.anatomy.n_layers - 1][:, activations.positions.index(-1)]
    if model.anatomy.final_norm is None:
        return states.to(model.module.get_input_embeddings().weight)
    norm = model.module.get_submodule(model.anatomy.final_norm)
    return norm(states.to(next(norm.parameters(), model.module.get_input_embeddings().weight)))


def _positions(model: LoadedModel, encoded: Encoded, settings: ProbeSettings) -> tuple[int, ...]:
    if settings.positions == "last":
        return (-1,)
    if not encoded.has_template or not encoded.post_instruction:
        raise UsageError(
            f"{model.source.asked} has no template tokens after the user's text, so there are no "
            "post-instruction positions. Use probe.positions=last."
        )
    return tuple(range(-encoded.post_instruction, 0))


def _at_positions(
    stream: Float[Tensor, "batch token d_model"], batch: Batch, positions: Sequence[int]
) -> Float[Tensor, "batch position d_model"]:
    """Return, on the CPU, each row's activations at ``positions`` counted from its own end."""
    lengths = batch.lengths.to(stream.device)
    tokens = lengths[:, None] + torch.tensor(positions, device=stream.device)
    rows = torch.arange(len(batch.rows), device=stream.device)[:, None]
    return stream[rows, tokens].cpu()


def _check_finite(
    chosen: Float[Tensor, "batch position d_model"], layer: Layer, prompts: Sequence[Prompt]
) -> None:
    finite = chosen.isfinite().all(dim=-1).all(dim=-1)
    if bool(finite.all()):
        return
    broken = [prompts[row].id for row in torch.nonzero(~finite)[:, 0].tolist()]
    where = "the embedding" if layer == "embedding" else f"layer {layer}"
    dtype = str(chosen.dtype).removeprefix("torch.")
    raise MeasurementError(
        f"the residual stream at {where} is not finite (NaN or infinity) for prompt "
        f"'{broken[0]}' and {len(broken) - 1} others of its batch, in {dtype}. Load the model with "
        "--dtype float32 (or bfloat16), or check that its weights are intact."
    )


@dataclass
class _Collector:
    """Collects the activations of one class, which arrive sorted by length."""

    prompts: tuple[Prompt, ...]
    layers: tuple[Layer, ...]
    keeps_prompts: bool
    kept: dict[Layer, Tensor] = field(default_factory=dict)
    moments: dict[Layer, MomentsAccumulator] = field(default_factory=dict)
    rows: set[int] = field(default_factory=set)

    def add(
        self, layer: Layer, chosen: Float[Tensor, "batch position d_model"], rows: Sequence[int]
    ) -> None:
        """Take the rows of ``chosen`` that are this class's: those with an index in its range."""
        mine = [(place, row) for place, row in enumerate(rows) if 0 <= row < len(self.prompts)]
        places = torch.tensor([place for place, _ in mine], dtype=torch.long)
        own, index = chosen[places], [row for _, row in mine]
        self.rows.update(index)
        self.moments.setdefault(layer, MomentsAccumulator()).add(own)
        if self.keeps_prompts:
            if layer not in self.kept:
                self.kept[layer] = torch.empty(len(self.prompts), *chosen.shape[1:])
            self.kept[layer][index] = own.float()

    def with_others(self) -> "_Collector":
        """Return what all processes have collected, which between them saw every prompt."""
        rows = sorted(self.rows)
        kept: dict[Layer, Tensor] = {layer: values[rows] for layer, values in self.kept.items()}
        every = _Collector(self.prompts, self.layers, self.keeps_prompts)
        for others, theirs, moments in gathered((rows, kept, self.moments)):
            every.rows.update(others)
            for layer, seen in moments.items():
                every.moments.setdefault(layer, MomentsAccumulator()).merge(seen)
            for layer, values in theirs.items():
                shape = (len(self.prompts), *values.shape[1:])
                every.kept.setdefault(layer, torch.empty(shape))[others] = values
        return every

    def result(self) -> ClassActivations:
        """Return what was collected, in the order of the class's prompts."""
        moments: dict[Layer, Moments] = {
            layer: self.moments[layer].result() for layer in self.layers
        }
        return ClassActivations(
            tuple(prompt.id for prompt in self.prompts),
            tuple(prompt.category for prompt in self.prompts),
            moments,
            self.kept,
        )
