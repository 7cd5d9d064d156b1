"""Architectures that were looked at and cannot be edited exactly, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "doge": "each block scales the stream channel by channel, which turns what was removed",
        "gemma3n": "its stream is four streams that are mixed in every block (AltUp)",
        "gemma3n_text": "its stream is four streams that are mixed in every block (AltUp)",
        "longcat_flash": "some of its experts pass their normed input on to the stream",
        "minimax": "a norm acts on the stream itself, and its gains turn what was removed",
        "openai-gpt": "a norm acts on the stream itself, and its gains turn what was removed",
        "xglm": "its sinusoidal positions are added to the stream and are no parameters",
        "ctrl": "its sinusoidal positions are added to the stream and are no parameters",
        "zaya": "each block scales the stream channel by channel, which turns what was removed",
    }
)
