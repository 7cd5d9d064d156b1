"""Architectures that were looked at and cannot be edited exactly, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

FOUR_STREAMS = (
    "it keeps four streams, which every block mixes by coefficients per token (AltUp), and adds a "
    "normed copy of one of them (Laurel); a direction of one stream is not defined for four"
)

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "gemma3n": FOUR_STREAMS,
        "gemma3n_text": FOUR_STREAMS,
    }
)
