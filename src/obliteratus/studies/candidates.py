"""Strengths of one edit, measured in the same batches where hooks are exact, else one by one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from typing_extensions import override

from obliteratus.edits.memory import excise
from obliteratus.edits.undo import undone
from obliteratus.errors import EditError
from obliteratus.events import without_progress
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.edit import EditPlan
from obliteratus.operator.hooks import edited
from obliteratus.operator.shares import Shares
from obliteratus.studies.bench import StudyBench
from obliteratus.verify.report import Row

Measured = tuple[float, tuple[Row, ...]]


class Candidates(ABC):
    """An edit at shares of its strengths, on one model in memory, against the unedited model.

    ``alone`` says why each share is measured by itself; None where they share batches.
    """

    alone: str | None = None

    def __init__(self, bench: StudyBench, planned: EditPlan) -> None:
        """``planned`` is the edit at share 1."""
        self._bench, self._planned = bench, planned

    def measured(self, shares: Sequence[float]) -> Iterator[Measured]:
        """Yield each of ``shares`` with what it changed; 0 is the original, measured once.

        The weights are what they were whenever this yields.
        """
        original = self._bench.original  # before anything changes
        if 0 in shares:
            yield 0.0, self._bench.rows(original)
        yield from self._changed([share for share in shares if share != 0])

    @abstractmethod
    def _changed(self, shares: Sequence[float]) -> Iterator[Measured]:
        """Yield what shares other than 0 do."""


class InMemory(Candidates):
    """The weights are edited, measured and given back, one share after the other."""

    def __init__(self, bench: StudyBench, planned: EditPlan, alone: str) -> None:
        """``alone`` says why hooks would not do."""
        super().__init__(bench, planned)
        self.alone = alone

    @override
    def _changed(self, shares: Sequence[float]) -> Iterator[Measured]:
        for share in shares:
            with undone(self._bench.model):
                with without_progress():
                    excise(self._bench.model, self._planned.scaled(share))
                rows = self._bench.rows(self._bench.read())
            yield share, rows


class InOneBatch(Candidates):
    """Hooks do what the edit does, at the share of each row, and no weight changes."""

    @override
    def _changed(self, shares: Sequence[float]) -> Iterator[Measured]:
        if not shares:
            return
        gain = Shares(shares)
        with edited(self._bench.model, self._planned, gain=gain):
            readings = self._bench.read_all(gain)
        for share, reading in zip(shares, readings, strict=True):
            yield share, self._bench.rows(reading)


def candidates(bench: StudyBench, planned: EditPlan) -> Candidates:
    """Return how shares of ``planned`` are measured fastest without measuring something else."""
    reason = inexact(bench.model, planned)
    return InOneBatch(bench, planned) if reason is None else InMemory(bench, planned, reason)


def inexact(model: LoadedModel, planned: EditPlan) -> str | None:
    """Say why hooks with a strength for each row are not the edit of the weights; None if they are.

    They are up to rounding where all that is edited writes to the stream, nothing is rescaled
    afterwards, and every edited module returns a row for each row of its batch. The last is tried
    on two rows of two tokens.
    """
    active = [edit for edit in planned if edit.is_active]
    kept = next((edit for edit in active if edit.norm != "none"), None)
    if kept is not None:
        return f"edit.norm={kept.norm} rescales {kept.site.name}, which hooks cannot do"
    reader = next((edit for edit in active if edit.site.role == "reader"), None)
    if reader is not None:
        return f"{reader.site.name} is edited, and probabilities are computed with its weights"
    if model.quantization is not None:
        return f"weights in {model.quantization} are not what an edit would leave"
    gain = Shares((1.0, -1.0))
    gain.turn((0, 1))
    backbone = model.module.get_submodule(model.anatomy.backbone)
    try:
        with torch.no_grad(), edited(model, planned, gain=gain):
            backbone(input_ids=torch.zeros(2, 2, dtype=torch.long, device=model.device))
    except EditError as error:
        return str(error)
    return None
