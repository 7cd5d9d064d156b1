"""Which of transformers' auto classes builds a configuration as a model that generates text."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)


def auto_class(config: PretrainedConfig) -> Any:
    """Return the auto class for ``config``; None where it describes no generating model.

    A model that also sees is built whole (Llama 4 is in both tables), so that what is saved is the
    model that was loaded.
    """
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return None
