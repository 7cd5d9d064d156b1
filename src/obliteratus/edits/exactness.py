"""Prove at any strength that matrices took what was asked, and that a saved folder holds them."""

from collections.abc import Sequence

from obliteratus.edits.proof import tolerance_of
from obliteratus.edits.receipt import Receipt, sha256_of
from obliteratus.errors import LeakError
from obliteratus.models.loaded import LoadedModel


def prove_receipt(model: LoadedModel, receipt: Receipt, *, allow_leak: bool = False) -> None:
    """Check that every matrix took the strengths of its edit to rounding, whatever they are.

    Raises:
        LeakError: V W' is further from (I − A) V W, times the factors of a kept norm, than the
            tolerance of the model's type (unless ``allow_leak``); it names the worst matrix.
    """
    tolerance = tolerance_of(model)
    done = [record for record in receipt.records if not record.is_skipped]
    worst = max(done, key=lambda record: record.error, default=None)
    if worst is not None and not worst.error <= tolerance and not allow_leak:
        raise LeakError(
            f"{worst.name} is off by {worst.error:.1e} of a random direction's share from what "
            f"its strengths ask (at most {tolerance:.0e} in {model.dtype}).",
            "Load the model in float32, or pass --allow-leak (edit.allow_leak=true) to go on.",
        )


def prove_saved(model: LoadedModel, receipts: Sequence[Receipt]) -> None:
    """Check that ``model``, loaded from a saved folder, holds the very numbers of ``receipts``.

    Raises:
        LeakError: a matrix or its bias is not what the last of the receipts left; it is named.
    """
    last = {record.name: record for receipt in receipts for record in receipt.records}
    for record in last.values():
        names = [name for name in (record.name, record.bias, record.norm_bias) if name]
        if sha256_of([model.module.get_parameter(name) for name in names]) != record.sha256:
            raise LeakError(
                f"{record.name} of the saved folder is not what was edited: the folder is not the "
                "model that was proved. Save it again; a full or failing disk may be the cause."
            )
