"""The fourth executor of a plan: a LoRA adapter in peft's format, exactly of the edit's rank."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from obliteratus.errors import EditError, StorageError, UsageError
from obliteratus.events import Deviation
from obliteratus.models.describe import is_tied
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.quantised import unpacked_weight
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.release.lora_card import write_lora_card
from obliteratus.release.lora_factors import Factors, edited_bias, factors_of
from obliteratus.release.lora_layers import (
    BiasMode,
    Target,
    adapted,
    adapter_tensors,
    bias_mode,
    is_layer,
    peft_config,
    wrapped,
)
from obliteratus.release.lora_proof import Agreement, compare, load_back
from obliteratus.release.save import RECORDS
from obliteratus.store import atomic_folder, write_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PROOF_TOKENS = 64
"""Tokens, spread over the vocabulary, that compare the adapter where no prompts are given."""

ALREADY_GONE = 1e-2
"""Share of a random direction's part in every matrix below which the plan was carried out before:
several times what bfloat16 leaves of an exact edit, far below any model that was not edited."""


@dataclass(frozen=True)
class LoraReceipt:
    """What an adapter holds and how it compares with the hooks.

    ``layers`` and ``parameters`` name the matrices that peft adapts as layers and by themselves
    (fused experts); ``ranks`` are those that occur. With ``bias`` other than ``none`` and
    ``lora_bias`` switching the adapter off leaves the edited biases in place. ``unmergeable`` says
    why merging it into the base would change something else, or is None.
    """

    ranks: tuple[int, ...]
    layers: tuple[str, ...]
    parameters: tuple[str, ...]
    bias: BiasMode
    size: int
    unmergeable: str | None
    agreement: Agreement
    deviations: tuple[Deviation, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**dataclasses.asdict(self), "agreement": self.agreement.as_json()}


@torch.no_grad()
def export_lora(
    model: LoadedModel,
    plan: EditPlan | Sequence[EditPlan],
    folder: Path,
    *,
    fingerprint: str | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    behaviour: str = "refusal",
    force: bool = False,
) -> LoraReceipt:
    """Write ``plan`` as a LoRA adapter for the **unedited** ``model``: W + B A = W − Uᵀ A V W.

    lora_B = −Uᵀ A and lora_A = V W of the dequantised weight, at scale lora_alpha / r = 1, in
    float32 (float64 for a float64 model). Several plans, one per pass, become one adapter of the
    sum of their ranks. Tied embeddings stay tied in the base: peft adds to what the embedding gives
    and leaves the head as it was.

    The folder holds ``adapter_model.safetensors``, ``adapter_config.json``, a README and
    ``obliteratus/lora.json``; equal inputs give equal bytes. Before it is renamed into place the
    adapter is loaded back with peft and compared with the hooks on ``prompts`` (token ids; tokens
    spread over the vocabulary unless given). ``model`` is left as it was.

    ``fingerprint`` is that of the model the plan was made for (``source.fingerprint`` of run.json),
    ``behaviour`` what it is an edit of.

    Raises:
        UsageError: peft is not installed.
        EditError: the model is another one or edited already, an edit keeps a norm or is malformed,
            the plan changes nothing, or peft cannot express an edit of this architecture.
        LeakError: the adapter, loaded back, is not the edit.
        StorageError: ``folder`` exists and ``force`` is false, or it cannot be written.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            "a LoRA adapter is written and checked with peft, which is not installed. Install it "
            "with `pip install 'obliteratus[lora]'`."
        )
    plans = (plan,) if isinstance(plan, EditPlan) else tuple(plan)
    by_site = _checked(model, plans, fingerprint)
    targets, biases = _targets(model, by_site)
    targets, bias = _expressible(model, targets, biases)
    chosen = prompts or [_spread_tokens(model)]
    with atomic_folder(folder, replace=force) as work:
        peft_model = wrapped(model.module, peft_config(model.source, model.module, targets, bias))
        tensors = adapter_tensors(model, peft_model, targets, biases)
        _save(tensors, work / WEIGHTS)
        config = peft_config(model.source, model.module, targets, bias)
        write_json(work / CONFIG, _plain(config.to_dict()))
        adapter = load_back(model, work, [target.name for target in targets])
        receipt = LoraReceipt(
            ranks=tuple(sorted({target.factors.rank for target in targets})),
            layers=tuple(target.name for target in targets if target.is_layer),
            parameters=tuple(target.name for target in targets if not target.is_layer),
            bias=bias,
            size=(work / WEIGHTS).stat().st_size,
            unmergeable=_unmergeable(model, targets),
            agreement=compare(model, adapter, plans, chosen),
            deviations=tuple(each for plan in plans for each in plan.deviations),
        )
        _write_record(work, model, receipt)
        write_lora_card(work, model, plans, receipt, behaviour=behaviour)
    return receipt


def _checked(
    model: LoadedModel, plans: Sequence[EditPlan], fingerprint: str | None
) -> dict[str, list[WeightEdit]]:
    """Return the edits of each parameter in the order of the plans, or refuse."""
    if fingerprint is not None and fingerprint != model.source.fingerprint:
        raise EditError(
            f"the plan was made for a model with fingerprint {fingerprint[:12]}…, and "
            f"{model.source.asked} has {model.source.fingerprint[:12]}…: an adapter holds V W of "
            "its base and would not remove anything from another. Load the model of the run."
        )
    by_site: dict[str, list[WeightEdit]] = {}
    for plan in plans:
        seen: set[str] = set()
        for edit in plan:
            if not bool(edit.strengths.any()) and edit.bias_shift is None:
                continue
            _check_edit(model, edit)
            if edit.site.name in seen:
                raise EditError(
                    f"the plan edits {edit.site.name} twice; merge the two edits into one basis."
                )
            seen.add(edit.site.name)
            by_site.setdefault(edit.site.name, []).append(edit)
    if not by_site:
        raise EditError("the plan changes nothing, so there is no adapter to write.")
    return by_site


def _check_edit(model: LoadedModel, edit: WeightEdit) -> None:
    site = edit.site
    if edit.norm != "none":
        raise EditError(
            f"the edit of {site.name} keeps the norm '{edit.norm}': it rescales the whole matrix, "
            "so its change has full rank and no adapter of low rank holds it. Plan with "
            "edit.norm=none, or save the edited weights instead (`obliteratus obliterate`)."
        )
    if edit.norm_bias is not None:
        raise EditError(
            f"the edit of {site.name} also changes {edit.norm_bias}, the bias of the norm behind "
            "it, which no adapter holds. Save the edited weights instead "
            "(`obliteratus obliterate`)."
        )
    can_shift = site.component == "embedding" or (site.bias and site.expert != "fused")
    if edit.bias_shift is not None and not can_shift:
        raise EditError(
            f"{site.name} has no bias to shift; put the shift on an embedding, which reaches every "
            "token once."
        )


def _targets(
    model: LoadedModel, by_site: dict[str, list[WeightEdit]]
) -> tuple[list[Target], dict[str, Tensor]]:
    """Return what the adapter changes, and the edited biases (b' in float64) by name."""
    targets: list[Target] = []
    biases: dict[str, Tensor] = {}
    largest = 0.0
    for name, edits in by_site.items():
        site = edits[0].site
        weight = unpacked_weight(model, name)
        axis = -2 if site.layout == "out_in" else -1
        if weight.ndim not in {2, 3} or weight.shape[axis] != edits[0].read_basis.shape[1]:
            raise EditError(
                f"{name} has shape {tuple(weight.shape)}, which does not fit its layout "
                f"'{site.layout}' with d_model = {edits[0].read_basis.shape[1]}; plan again on "
                "this model."
            )
        owner = model.module.get_submodule(name.rpartition(".")[0])
        as_layer = name.endswith(".weight") and is_layer(owner)
        factors = factors_of(weight, edits)
        largest = max(largest, _share(factors, weight, edits[0]))
        targets.append(Target(name, site.layout, factors, as_layer))
        if site.bias is None:
            continue
        bias = unpacked_weight(model, site.bias)
        if bias.ndim == 2:  # a bias for each expert is a matrix [expert, d_model]
            factors = factors_of(bias, edits, layout="in_out")
            targets.append(Target(site.bias, "in_out", factors, is_layer=False))
        else:
            biases[site.bias] = edited_bias(bias.to("cpu", torch.float64), edits)
    if largest < ALREADY_GONE:
        raise EditError(
            f"no matrix has more than {largest:.0e} of a random direction's share along what the "
            "plan removes: this model was edited already. Export from the unedited model."
        )
    return targets, biases


def _share(factors: Factors, weight: Tensor, edit: WeightEdit) -> float:
    """Return ‖V W‖ √d_model / (‖V‖ ‖W‖), which is about 1 for a random direction."""
    along, whole, rows = (
        float(torch.linalg.vector_norm(part, dtype=torch.float64))
        for part in (factors.read[:, : len(edit.read_basis)], weight, edit.read_basis)
    )
    return along * edit.read_basis.shape[1] ** 0.5 / (whole * rows) if whole else 0.0


def _expressible(
    model: LoadedModel, targets: list[Target], biases: dict[str, Tensor]
) -> tuple[list[Target], BiasMode]:
    """Return the targets as peft will reach them, and how it holds the biases.

    For mixtures whose experts transformers has fused, peft takes the name of a dense
    ``down_proj`` for that of the old experts; such a layer is adapted by its parameter.
    """
    bias = bias_mode(targets, biases, model.module)
    config = peft_config(model.source, model.module, targets, bias)
    reached = adapted(wrapped(model.module, config))
    result: list[Target] = []
    for target in targets:
        if target.name not in reached or not _reached_as(target, reached[target.name]):
            packed = not model.module.get_parameter(target.name).is_floating_point()
            if packed:
                raise EditError(
                    f"peft takes {target.name} for one of the fused experts, and it is quantised. "
                    "Load the model unquantised."
                )
            result.append(dataclasses.replace(target, is_layer=False))
        else:
            result.append(target)
    return result, bias_mode(result, biases, model.module)


def _reached_as(target: Target, layer: Any) -> bool:
    return target.is_layer != hasattr(layer, "parameter_name")


def _unmergeable(model: LoadedModel, targets: Sequence[Target]) -> str | None:
    sites = {site.name: site for site in model.anatomy.writers}
    for target in targets:
        site = sites.get(target.name)
        if site is not None and is_tied(model.module, site):
            return f"{target.name} shares its memory with the head, which merging would edit too"
    return None


def _spread_tokens(model: LoadedModel) -> list[int]:
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    return torch.linspace(0, vocabulary - 1, PROOF_TOKENS).long().tolist()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise StorageError(
            f"the adapter cannot be written to {path.parent}: {error}. Free some space or choose "
            "another --output."
        ) from error


def _write_record(folder: Path, model: LoadedModel, receipt: LoraReceipt) -> None:
    (folder / RECORDS).mkdir()
    source = dataclasses.asdict(model.source)
    if model.source.kind not in ("hub", "catalogue"):
        del source["asked"], source["identifier"]  # where it lay on this machine
    write_json(folder / RECORDS / "lora.json", {"base": source, **receipt.as_json()})


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return peft's configuration with its sets in order, so that equal ones give equal bytes."""
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
