"""What an analysis is: a question, the method that answers it, its cost, and how to draw it."""

from collections.abc import Callable
from dataclasses import dataclass

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.findings import Findings
from obliteratus.pictures.spec import Picture
from obliteratus.registry import Registry


@dataclass(frozen=True)
class Analysis:
    """One analysis as it is listed, run and drawn.

    ``question`` and ``method`` are a sentence or two each, ``source`` names publications (arXiv
    ids), ``null`` says what the same method gives where there is nothing to find, ``cost`` how many
    forward passes of how many prompts it takes beyond PROBE. ``run`` reads the bench and hands
    values to the mathematics; ``pictures`` are made of the findings alone, so that a saved file can
    be drawn again. ``compares`` says that it reads a second model too (``Bench.other``).
    """

    title: str
    question: str
    method: str
    null: str
    source: str
    cost: str
    run: Callable[[Bench], Findings]
    pictures: Callable[[Findings], tuple[Picture, ...]]
    compares: bool = False


ANALYSES: Registry[Analysis] = Registry("analysis", "obliteratus.analysis")
