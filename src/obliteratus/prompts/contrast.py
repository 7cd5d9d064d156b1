"""Prompts and sets of them."""

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """One request. ``id`` is unique in its class of a set; ``category`` None where unknown."""

    id: str
    text: str
    category: str | None = None


@dataclass(frozen=True)
class ContrastSet:
    """Harmful and harmless prompts; where ``is_paired``, index i of both is one minimal pair."""

    name: str
    harmful: tuple[Prompt, ...]
    harmless: tuple[Prompt, ...]
    is_paired: bool

    @property
    def sha256(self) -> str:
        """A hash of every id, text, category and the pairing, in order."""
        value = [
            [[p.id, p.text, p.category] for p in side] for side in (self.harmful, self.harmless)
        ]
        return hashlib.sha256(json.dumps([value, self.is_paired]).encode()).hexdigest()


@dataclass(frozen=True)
class Splits:
    """One contrast set split once: *fit* finds directions, *select* chooses, *test* reports."""

    fit: ContrastSet
    select: ContrastSet
    test: ContrastSet
