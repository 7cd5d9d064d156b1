"""Architectures that were looked at and cannot be edited exactly, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "gemma3n": "its stream is four streams that are mixed in every block (AltUp)",
        "gemma3n_text": "its stream is four streams that are mixed in every block (AltUp)",
    }
)
