"""The axis words used in tensor types, and the key of a layer.

=============  ==================================================================================
``layer``      a transformer block, counted from 0; its tensor is the block's output
``prompt``     one prompt of a set
``position``   one chosen token position of a prompt, counted from its end
``token``      one token of a sequence
``head``       one attention head
``rank``       one direction of a basis
``d_model``    one coordinate of the residual stream
``d_in``       one input coordinate of a matrix that writes to the stream
``vocab``      one token of the vocabulary
``expert``     one expert of a mixture
=============  ==================================================================================
"""

from typing import Literal

Layer = int | Literal["embedding"]
"""A place in the residual stream: the output of block ``i`` (before the final norm), or the
output of the embedding, before block 0."""

Component = Literal["embedding", "attention", "mlp", "experts", "state_space", "head"]
"""The part of a model that a matrix belongs to."""
