"""Every architecture as an adapter: each matrix exactly the edit, or refused with the reason."""

import copy
from pathlib import Path

import pytest
from peft import PeftModel

from obliteratus.edits.planner import plan
from obliteratus.errors import EditError, LeakError
from obliteratus.operator.grro import Operator, edit_matrix
from obliteratus.release.lora import export_lora
from obliteratus.release.lora_layers import adapted
from obliteratus.testing.float64 import ExactFloat64
from obliteratus.testing.keystone import AGREEMENT, random_directions
from obliteratus.testing.tiny import MODEL_TYPES, tiny_model

MAMBA = (EditError, "incompatible with Mamba-based models")
REFUSED: dict[str, tuple[type[Exception], str]] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"), MAMBA),
    "bloom": (EditError, "the bias of the norm behind it"),
    "dbrx": (EditError, "does not run with peft's layers in it"),
    "laguna": (LeakError, "does not read .* back as it was written"),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft asks transformers
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_adapter_is_exact_or_refused(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    if model.anatomy.hooks_only is not None:
        return  # no plan of its weights exists, so none can become an adapter
    planned = plan(model, random_directions(model, rank=2, per_layer=True))
    folder = tmp_path / "adapter"
    with ExactFloat64():
        if model_type in REFUSED:
            error, why = REFUSED[model_type]
            with pytest.raises(error, match=why):
                export_lora(model, planned, folder)
            return
        receipt = export_lora(model, planned, folder)
    assert receipt.agreement.logit_gap < AGREEMENT < receipt.agreement.logit_change
    layers = adapted(PeftModel.from_pretrained(copy.deepcopy(model.module), folder))
    for edit in planned:  # also experts that no token was routed to, and projectors of images
        operator = Operator(edit.write_basis, edit.read_basis, edit.strengths, edit.site.layout)
        weight = model.module.get_parameter(edit.site.name).detach()
        change = edit_matrix(weight, operator)[0] - weight
        found = layers[edit.site.name].get_delta_weight("default")
        assert float((found - change).abs().max()) < AGREEMENT, edit.site.name


def test_every_refusal_is_of_an_architecture_that_exists() -> None:
    assert set(REFUSED) <= set(MODEL_TYPES)
