"""The README of a LoRA adapter: for which base, how to load it, and how exact it is."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.serial import explain
from obliteratus.release.card import CARD, HOME, header, origin
from obliteratus.release.lora_layers import hub_base

if TYPE_CHECKING:
    from obliteratus.release.lora import LoraReceipt

TEXT = """---
{header}---
# LoRA adapter made by [obliteratus]({home})

{changes}

For {origin} and for no other model: it holds products of the base's own weights. The base's
fingerprint is `{fingerprint}`{quantised}.

Whoever deploys it is responsible for the safety of what it answers: {safety}

## Use

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "this folder")
```

{notes}

## How exact it is

Loaded back on its base, its logits differ from those of the edit itself by {gap:.0e} (rms), where
the edit moves them by {change:.0e}.{residual}
"""


def write_lora_card(
    folder: Path,
    model: LoadedModel,
    plans: Sequence[EditPlan],
    receipt: "LoraReceipt",
    *,
    behaviour: str = "refusal",
) -> None:
    """Write ``README.md`` into the adapter's folder."""
    agreement = receipt.agreement
    residual = ""
    if agreement.stream is not None:
        worst = max(agreement.stream.writers.values())
        residual = f" At most {worst:.0e} of any write is left along what was removed."
    quantised = f", loaded in {model.quantization}" if model.quantization else ""
    text = TEXT.format(
        header=header(
            model.source,
            hub_base(model.source),
            relation="adapter",
            library="peft",
            behaviour=behaviour,
        ),
        home=HOME,
        changes=" Then: ".join(
            explain(dataclasses.replace(plan, unties_head=False)) for plan in plans
        ),
        safety=_safety(plans, behaviour),
        origin=origin(model.source),
        fingerprint=model.source.fingerprint,
        quantised=quantised,
        notes="\n".join(f"- {note}" for note in _notes(receipt)),
        gap=agreement.logit_gap,
        change=agreement.logit_change,
        residual=residual,
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _safety(plans: Sequence[EditPlan], behaviour: str) -> str:
    if behaviour != "refusal":
        return (
            f"it is an\nedit of '{behaviour}', and whether the base still refuses what it refused "
            "was not measured."
        )
    if all(plan.amplifies for plan in plans):
        return (
            "an adapter that amplifies\nrefusal makes the base decline more, harmless requests "
            "too, and whoever unloads it is rid of it."
        )
    return "an adapter that removes refusal\nmakes the base answer what it would have declined."


def _notes(receipt: "LoraReceipt") -> list[str]:
    ranks = ", ".join(str(rank) for rank in receipt.ranks)
    notes = [f"Rank {ranks}, in {len(receipt.layers) + len(receipt.parameters)} matrices."]
    if receipt.unmergeable is not None:
        notes.append(
            f"Do not merge it (`merge_and_unload`): {receipt.unmergeable}. Unmerged it leaves the "
            "head as it was, whatever peft warns of."
        )
    if receipt.bias in ("lora_only", "all"):
        notes.append(
            "Loading it replaces biases of the base; switching it off does not bring them back. "
            "Load the base anew for that."
        )
    if receipt.parameters:
        notes.append(
            "It adapts parameters of fused layers (`target_parameters`): peft forms the changed "
            "matrix in every forward pass."
        )
    return notes
