"""Where does a removal cost skill? Each block's writers alone, against the same change turned.

The removal is made in the writers of one block, and the log-odds of right answers fall by more than
under turned changes of these writers (:mod:`obliteratus.analysis.turned`) where answers read what
this block writes along r. Blocks are a family: Holm's correction is over all of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import NEGLIGIBLE
from obliteratus.analysis.entanglement import Asked, falls_of_skill
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.resampling import RESAMPLES, SIGNIFICANT, prediction_bound
from obliteratus.analysis.turned import out, turned
from obliteratus.directions.layer_control import beyond_nulls
from obliteratus.events import track
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.multiple import holm

TURNED = 4
"""Turned changes of each block: three degrees of freedom for the scatter between them."""
STREAM = 0x626C6F63  # added to the seed, so that no other use of it has drawn the same directions

Falls = Mapping[int, Float64[np.ndarray, "vector item"]]
"""Block -> falls of skill; row 0 is the removal in it alone, the others are it turned."""


def block_entanglement(falls: Falls, *, seed: int) -> Findings:
    """Return the fall of skill by block; ``facts["entangled"]`` are those beyond their nulls.

    A block is supported where its fall is more than negligible and, after Holm's correction, above
    what a further turned change stays below; its ``null`` is that bound.

    Raises:
        MeasurementError: no blocks, fewer than two questions, or fewer than three turned changes.
    """
    compared = {
        block: beyond_nulls(
            rows[0], prediction_bound(rows[1:].mean(axis=1)), seed=seed, permutations=RESAMPLES
        )
        for block, rows in falls.items()
    }
    adjusted = holm({str(block): each.p_value for block, each in compared.items()})
    estimates: dict[str, Estimate] = {}
    entangled: list[int] = []
    for block, each in compared.items():
        effect, bound = each.effect, max(float(each.effect.null or 0.0), NEGLIGIBLE)
        verdict: Verdict = "undetermined"
        if effect.value > bound and adjusted[str(block)] < SIGNIFICANT:
            verdict = "supported"
            entangled.append(block)
        elif effect.interval[1] < bound:
            verdict = "not_supported"
        low, high = effect.interval
        estimates[f"block_{block}"] = Estimate(
            effect.value, (low, high), effect.n, effect.null, seed, verdict
        )
    return Findings(
        module="block_entanglement",
        headline=_headline(entangled, len(falls)),
        estimates=estimates,
        arrays={"p": np.array([adjusted[str(block)] for block in falls])},
        facts={"blocks": list(falls), "entangled": entangled},
    )


def measure_blocks(
    bench: Bench,
    row: Float64[Tensor, " d_model"],
    blocks: Sequence[int],
    questions: Sequence[Asked],
    *,
    vectors: int = TURNED,
    seed: int = 0,
) -> Falls:
    """Take the unit ``row`` out of the writers of each of ``blocks`` alone, and read the answers.

    The nulls are ``vectors`` turned changes, the same for all blocks. It costs 2 + ``vectors``
    passes of the questions for each block.

    Raises:
        MeasurementError: what changes the stream is more than writes.
    """
    generator = torch.Generator().manual_seed(STREAM + seed)
    row = row.double().cpu()
    changes = [out(row), *(turned(row, generator) for _ in range(vectors))]
    tracked = track(blocks, task="skill by block", total=len(blocks), unit="blocks")
    return {block: falls_of_skill(bench, changes, questions, [block]) for block in tracked}


def _headline(entangled: Sequence[int], count: int) -> str:
    if not entangled:
        return f"In none of {count} blocks alone does the removal cost skill beyond its nulls."
    names = ", ".join(map(str, entangled))
    return f"The removal costs skill in {len(entangled)} of {count} blocks alone: {names}."
