"""Carry out a plan on the weights in memory, one matrix at a time."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from obliteratus.edits.receipt import EditRecord, Receipt, record_of, sha256_of
from obliteratus.errors import EditError
from obliteratus.events import Deviation, DeviationRecorded, emit, track
from obliteratus.models.describe import is_tied
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.behind import norm_bias_operator
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.grro import MatrixChange, Operator, edit_matrix, edit_vector

ROW_ERROR_REPORTED = 1e-2
"""A kept row norm that is further off than this is recorded as a deviation."""


def excise(model: LoadedModel, plan: EditPlan) -> Receipt:
    """Edit the weights of ``model`` in place as ``plan`` says: W' = W − Uᵀ A V W, b' likewise.

    Behind a LayerNorm the norm's own bias is edited as well (:class:`WeightEdit`).
    A head tied to an edited embedding gets its own copy first, and the configuration says so, so
    the saved model stays apart. Memory beyond that copy stays within one matrix. An edit whose
    strengths are all 0 leaves its tensors untouched, bit for bit. Everything that can be refused
    is refused before the first tensor changes.

    Returns:
        What was done to each matrix, with every deviation from the plan.

    Raises:
        EditError: the model is quantised, offloaded or split between processes, an edit does not
            fit its matrix, a tensor would be edited twice, a tied tensor that is not the head would
            change, or the result is not finite.
    """
    active = [edit for edit in plan if _is_active(edit)]
    _check(model, active)
    untied, grown = _untie(model.module, active)
    records: list[EditRecord] = []
    deviations = list(plan.deviations)
    for edit in track(plan, task="excise", total=len(plan), unit="matrix"):
        record, met = _edit_site(model.module, edit)
        records.append(record)
        for deviation in met:
            emit(DeviationRecorded(deviation))
        deviations.extend(met)
    return Receipt(tuple(records), untied, grown, tuple(deviations))


def untie_head(model: PreTrainedModel, head: str) -> int:
    """Give the parameter ``head`` its own memory and say so in the configuration.

    Returns:
        The bytes by which the model grew.
    """
    path, _, name = head.rpartition(".")
    owner = model.get_submodule(path)
    shared = owner.get_parameter(name)
    own = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    setattr(owner, name, own)
    for config in _configs(model.config):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys.pop(head, None)
    return own.numel() * own.element_size()


def _configs(config: PretrainedConfig) -> Iterable[PretrainedConfig]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield part


def _is_active(edit: WeightEdit) -> bool:
    return bool(edit.strengths.any()) or edit.bias_shift is not None


def _check(model: LoadedModel, active: list[WeightEdit]) -> None:
    if model.parallel == "tensor":
        raise EditError(
            "the processes of this run hold parts of the matrices, and a part is not edited by "
            "itself. Edit the checkpoint on disk: obliteratus obliterate MODEL --stream."
        )
    if model.quantization is not None:
        raise EditError(
            f"the model is loaded in {model.quantization}, and requantising an edited matrix puts "
            "part of what was removed back. Load it without --quantize, or unpack it first with "
            "models.quantised.dequantised."
        )
    names = [name for edit in active for name in (edit.site.name, edit.norm_bias) if name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EditError(f"the plan edits {twice} twice; merge the two edits into one basis.")
    for edit in active:
        site = edit.site
        weight = model.module.get_parameter(site.name)
        if weight.is_meta:
            raise EditError(
                f"{site.name} is offloaded; load the model with enough memory (--max-memory) or "
                "on the CPU."
            )
        axis = -2 if site.layout == "out_in" else -1
        if weight.ndim not in {2, 3} or weight.shape[axis] != edit.read_basis.shape[1]:
            raise EditError(
                f"{site.name} has shape {tuple(weight.shape)}, which does not fit its layout "
                f"'{site.layout}' with d_model = {edit.read_basis.shape[1]}; correct the family "
                "file, or plan again on this model."
            )
        can_shift = site.component == "embedding" or (site.bias and site.expert != "fused")
        if edit.bias_shift is not None and not can_shift:
            raise EditError(
                f"{site.name} has no bias to shift; put the shift on an embedding, which reaches "
                "every token once."
            )


def _untie(module: PreTrainedModel, active: list[WeightEdit]) -> tuple[str | None, int]:
    tied = [edit.site for edit in active if is_tied(module, edit.site)]
    if not tied:
        return None, 0
    head = module.get_output_embeddings()
    name = next((path for path, part in module.named_modules() if part is head), None)
    writers = [site for site in tied if site.component != "head"]
    shared = {module.get_parameter(site.name) for site in tied}
    if len(writers) > 1 or head is None or shared != {head.weight}:
        raise EditError(
            f"{tied[0].name} shares its memory with a parameter that is not the head, so editing "
            "one edits the other. This architecture needs a family file that unties it."
        )
    return f"{name}.weight", untie_head(module, f"{name}.weight")


@torch.no_grad()
def _edit_site(module: PreTrainedModel, edit: WeightEdit) -> tuple[EditRecord, list[Deviation]]:
    site = edit.site
    operator = Operator(edit.write_basis, edit.read_basis, edit.strengths, site.layout, edit.norm)
    weight = module.get_parameter(site.name).detach()
    change = edit_matrix(weight, operator, in_place=True)[1]
    bias = None if site.bias is None else module.get_parameter(site.bias).detach()
    bias_before = None if bias is None else _norm(bias)
    if bias is not None and not operator.is_identity:
        bias.copy_(edit_vector(bias, operator))
    norm_bias = None if edit.norm_bias is None else module.get_parameter(edit.norm_bias).detach()
    norm_bias_before = None if norm_bias is None else _norm(norm_bias)
    if norm_bias is not None:
        norm_bias.copy_(edit_vector(norm_bias, norm_bias_operator(edit)))
    if edit.bias_shift is not None:
        shifted = weight if site.component == "embedding" else bias
        assert shifted is not None  # _check refuses a shift without a place
        wide = torch.promote_types(shifted.dtype, torch.float32)
        shifted.copy_(shifted.to(wide) + edit.bias_shift.to(shifted.device, wide))
    record = record_of(
        site.name,
        change,
        d_model=edit.read_basis.shape[1],
        layer=site.layer,
        component=site.component,
        strengths=tuple(edit.strengths.tolist()),
        norm=edit.norm,
    )
    record = dataclasses.replace(
        record,
        sha256=sha256_of([part for part in (weight, bias, norm_bias) if part is not None]),
        bias=site.bias,
        bias_norm_before=bias_before,
        bias_norm_after=None if bias is None else _norm(bias),
        norm_bias=edit.norm_bias,
        norm_bias_norm_before=norm_bias_before,
        norm_bias_norm_after=None if norm_bias is None else _norm(norm_bias),
        is_skipped=not _is_active(edit),
    )
    return record, deviations_of(edit, change)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def deviations_of(edit: WeightEdit, change: MatrixChange) -> list[Deviation]:
    """Return where an edit could not keep the norm that it was asked to keep."""
    asked = f"edit.norm={edit.norm}"
    found: list[Deviation] = []
    if change.columns_lost:
        found.append(
            Deviation(
                edit.site.name,
                asked,
                f"{change.columns_lost} input columns were left at nearly zero",
                "they lay along the removed directions, so nothing but rounding could be rescaled",
            )
        )
    if change.row_error > ROW_ERROR_REPORTED:
        found.append(
            Deviation(
                edit.site.name,
                asked,
                f"a row norm is off by {change.row_error:.0%}",
                "one coordinate dominates the direction, so its row cannot keep both its norm and "
                "the removal; the removal was kept",
            )
        )
    return found
