"""Give a released model back as it was before its edit, from its ``undo.safetensors``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from obliteratus.edits.receipt import sha256_of
from obliteratus.errors import EditError, UsageError
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.release.run_folder import RECEIPT
from obliteratus.release.save import RECORDS, write_model
from obliteratus.release.undo_file import UNDO, load_undo, names_of, undone
from obliteratus.settings import ModelSettings
from obliteratus.store import Store, atomic_folder, read_json


def undo(folder: Path, output: Path, *, force: bool = False, store: Store | None = None) -> int:
    """Write the unedited model of ``folder`` to ``output`` and return how many tensors came back.

    W = W' ⊙ factor + left · right, rounded to the type of the weights; biases are as they were, bit
    for bit. A head that was untied stays a tensor of its own. No record or card is copied: none is
    of this model.

    Raises:
        UsageError: ``folder`` has no undo.
        EditError: a tensor is not the one that was edited (it was converted or trained since).
        StorageError: ``output`` exists and ``force`` is false, or cannot be written.
    """
    path = folder / RECORDS / UNDO
    if not path.is_file():
        raise UsageError(
            f"{folder} has no {RECORDS}/{UNDO}: its edit is not of low rank, or it was made by an "
            "earlier version. Take the base model at the revision that its card names."
        )
    given = load_undo(path)
    with atomic_folder(output, replace=force) as work:
        model = summon(str(folder), _as_stored(folder), store=store)
        _check_unchanged(model, folder, given)
        count = give_back(model, given)
        write_model(model, work)
    return count


@torch.no_grad()
def give_back(model: LoadedModel, given: Mapping[str, Tensor]) -> int:
    """Undo the edit of ``model`` in place and return how many parameters that changed.

    Raises:
        EditError: it has not all the parameters that ``given`` is of.
    """
    names = names_of(given)
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    missing = next((name for name in names if name not in parameters), None)
    if missing is not None:
        raise EditError(f"the model has no parameter {missing}, which the undo is of.")
    for name in names:
        parameters[name].copy_(undone(name, parameters[name].cpu(), given))
    return len(names)


def _as_stored(folder: Path) -> ModelSettings:
    """Return settings that load the weights in the type that they are stored in."""
    config: dict[str, Any] = read_json(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    found = (part.get("dtype") or part.get("torch_dtype") for part in parts)
    return ModelSettings.model_validate({"dtype": next(filter(None, found), "float32")})


def _check_unchanged(model: LoadedModel, folder: Path, given: Mapping[str, Tensor]) -> None:
    """Compare what was edited with the hashes of the last receipt that has it."""
    records: dict[str, dict[str, Any]] = {}
    receipts = (folder / RECORDS).glob(f"{Path(RECEIPT).stem}*.json")
    for receipt in sorted(receipts, key=_pass_number):
        records |= {each["name"]: each for each in read_json(receipt)["edits"]}
    for name in set(names_of(given)) & set(records):
        record = records[name]
        parts = [each for each in (name, record["bias"], record["norm_bias"]) if each]
        tensors = [model.module.get_parameter(part) for part in parts]
        if sha256_of(tensors) != record["sha256"]:
            raise EditError(
                f"{name} in {folder} is not as the edit left it: it was converted, quantised or "
                "trained since, and what is added to it would not give the original back. Take "
                "the folder as it was released."
            )


def _pass_number(path: Path) -> int:
    number = path.stem.rpartition("-pass")[2]
    return int(number) if number.isdigit() else 1
