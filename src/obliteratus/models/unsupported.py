"""Architectures that were looked at and cannot be edited exactly, with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

UNSUPPORTED: Mapping[str, str] = MappingProxyType({})
"""Model type -> why; none at present."""
