"""Which tensors of a GGUF file a plan edits, checked before a byte is written."""

from collections.abc import Sequence
from dataclasses import dataclass

from obliteratus.errors import EditError
from obliteratus.models.gguf_header import GgufHeader
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.release.gguf_names import EMBEDDING, HEAD, GgufNames, layout_in_gguf
from obliteratus.release.gguf_rewrite import REWRITABLE

CONVERTER = "convert_hf_to_gguf.py"
"""The script of llama.cpp that turns a model folder into a GGUF file."""


@dataclass(frozen=True)
class TensorChange:
    """The edits of one tensor, one pass after the other, and the bias that is edited with it."""

    tensor: str
    edits: tuple[WeightEdit, ...]
    bias: str | None


def tensor_changes(
    header: GgufHeader, names: GgufNames, plans: Sequence[EditPlan]
) -> tuple[TensorChange, ...]:
    """Return what is to be done to each tensor, in the order of the file.

    Raises:
        EditError: a tensor is missing, has another shape, is of a kind whose rounding would undo
            the edit or would be edited twice in one pass, or nothing would change at all.
        UnsupportedArchitectureError: a parameter has no name in the file.
    """
    found: dict[str, TensorChange] = {}
    for plan in plans:
        seen: set[str] = set()
        for edit in plan:
            if not bool(edit.strengths.any()) and edit.bias_shift is None:
                continue
            tensor = names[edit.site.name]
            bias = None if edit.site.bias is None else names[edit.site.bias]
            if tensor in seen:
                raise EditError(
                    f"the plan edits {tensor} twice, the second time as {edit.site.name}; convert "
                    f"the edited folder with llama.cpp's {CONVERTER} instead."
                )
            seen.add(tensor)
            _check(header, tensor, bias, edit)
            earlier = found[tensor].edits if tensor in found else ()
            found[tensor] = TensorChange(tensor, (*earlier, edit), bias)
    if not found:
        raise EditError("the plan changes nothing: every strength is 0. Copy the file instead.")
    return tuple(found[name] for name in header.tensors if name in found)


def _check(header: GgufHeader, tensor: str, bias: str | None, edit: WeightEdit) -> None:
    """Check one edit against the file before a byte is written."""
    if edit.norm_bias is not None:
        raise EditError(
            f"the edit of {edit.site.name} also changes {edit.norm_bias}, the bias of the norm "
            f"behind it; convert the edited folder with llama.cpp's {CONVERTER} instead."
        )
    its_bias = tensor.removesuffix(".weight") + ".bias"
    if bias is None and its_bias in header.tensors:
        raise EditError(
            f"the file has {its_bias} and the plan does not know it, so it would go on writing "
            "what is removed. Plan again on this file's own model."
        )
    for name in (tensor,) if bias is None else (tensor, bias):
        if name not in header.tensors:
            raise EditError(
                f"the file has no tensor {name}, which the plan edits as {edit.site.name}. Give "
                "the GGUF file of the model that the plan was made for."
            )
        kind = header.tensors[name].kind
        if kind not in REWRITABLE:
            raise EditError(
                f"{name} is {kind.name}: rounding an edited matrix to so few bits puts much of "
                "what was removed back. Give an F32, F16, BF16 or Q8_0 file of the model, or "
                f"convert the edited folder with llama.cpp's {CONVERTER}."
            )
    _check_shapes(header, tensor, bias, edit)


def _check_shapes(header: GgufHeader, tensor: str, bias: str | None, edit: WeightEdit) -> None:
    width = edit.read_basis.shape[1]
    layout = layout_in_gguf(edit.site.component)
    axis = -2 if layout == "out_in" else -1
    for name, where in ((tensor, axis),) if bias is None else ((tensor, axis), (bias, -1)):
        shape = header.tensors[name].shape
        if -where > len(shape) or shape[where] != width:
            raise EditError(
                f"{name} has shape {shape}, which does not have d_model = {width} on axis {where}. "
                "Give the GGUF file of the model that the plan was made for."
            )
    if edit.bias_shift is not None and bias is None and edit.site.component != "embedding":
        raise EditError(f"{tensor} has no bias to shift; put the shift on an embedding.")


def new_head(header: GgufHeader, names: GgufNames, changes: Sequence[TensorChange]) -> str | None:
    """Return the name of the head to be added where an edited embedding serves as the head.

    Raises:
        EditError: llama.cpp takes no head apart from the embedding in this architecture.
    """
    is_edited = any(change.tensor == EMBEDDING for change in changes)
    if not is_edited or HEAD in header.tensors:
        return None
    if not names.has_head:
        raise EditError(
            f"the embedding of a '{names.architecture}' file is its head as well, and llama.cpp "
            "takes no head apart from it, so the edit would change the head. Run obliterate again "
            "with --set edit.embedding=leave."
        )
    return HEAD
