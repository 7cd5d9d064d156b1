"""What a parameter of transformers is called in a GGUF file, and how it lies there."""

from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, get_tensor_name_map

from obliteratus.errors import UnsupportedArchitectureError
from obliteratus.models.anatomy import Component, Layout
from obliteratus.models.gguf_header import GgufHeader

HEAD = "output.weight"
EMBEDDING = "token_embd.weight"
SUFFIXES = {".weight": ".weight", ".bias": ".bias", "_bias": ".bias", "": ".weight"}
"""How a parameter's name ends in transformers, and what GGUF puts there: fused experts are
parameters without ``.weight``, their biases end in ``_bias``."""
TEXT_MODEL = "language_model."
"""The part of a parameter's name that says which half of a model that sees it belongs to; a GGUF
file holds the text half alone."""


class GgufNames:
    """Translates the parameter names of one model."""

    def __init__(self, header: GgufHeader) -> None:
        """``header`` is that of the model's GGUF file.

        Raises:
            UnsupportedArchitectureError: the gguf package does not know its architecture.
        """
        self.architecture = str(header.fields.get("general.architecture"))
        known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        if self.architecture not in known:
            raise UnsupportedArchitectureError(
                f"the gguf package does not know the tensors of a '{self.architecture}' file. "
                "Upgrade gguf, or convert the edited folder with llama.cpp."
            )
        self._tensors = MODEL_TENSORS[known[self.architecture]]
        n_blocks = int(header.fields.get(f"{self.architecture}.block_count", 0))
        self._map = get_tensor_name_map(known[self.architecture], n_blocks)

    @property
    def has_head(self) -> bool:
        """Whether a file of this architecture may have a head apart from the embedding."""
        return MODEL_TENSOR.OUTPUT in self._tensors

    def __getitem__(self, parameter: str) -> str:
        """Return the name of ``parameter``, weight or bias, in the file.

        Raises:
            UnsupportedArchitectureError: the gguf package has no name for it.
        """
        plain = parameter.replace(TEXT_MODEL, "")
        ending = next(ending for ending in SUFFIXES if plain.endswith(ending))
        found = self._map.get_name(plain.removesuffix(ending))
        if found is None:
            raise UnsupportedArchitectureError(
                f"the gguf package has no name for {parameter} in a '{self.architecture}' file. "
                "Convert the edited folder with llama.cpp instead."
            )
        return found + SUFFIXES[ending]


def layout_in_gguf(component: Component) -> Layout:
    """Return how a writer is stored: embeddings [vocab, d_model], all other matrices [out, in].

    Files keep that also where transformers turns a matrix round (GPT-2, transposed experts).
    """
    return "in_out" if component == "embedding" else "out_in"
