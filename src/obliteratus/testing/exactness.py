"""One row of evidence per architecture: what an edit leaves, in memory and after a round trip."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.models.auto import auto_class
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.hooks import edited
from obliteratus.operator.removal import removal
from obliteratus.testing.keystone import (
    AGREEMENT,
    NOTHING_LEFT,
    copied,
    exact_logits,
    random_directions,
    residual,
    tokens_for,
)
from obliteratus.testing.tiny import tiny_model


@dataclass(frozen=True)
class Exactness:
    """What removing a random direction everywhere leaves in one tiny float64 model.

    ``residual`` is the largest |R x| / |x| over layers and tokens, ``disagreement`` the largest
    |Δlogit| between edited weights and hooks, and ``reloaded`` the same after saving and loading.
    Where ``hooks_only`` says why weights cannot be edited, the residual is that under hooks and the
    other two are None.
    """

    model_type: str
    family: str
    edited: tuple[str, ...]
    residual: float
    disagreement: float | None
    reloaded: float | None
    hooks_only: str | None

    @property
    def is_exact(self) -> bool:
        """Whether every figure is within the bound of the keystone."""
        gaps = [gap for gap in (self.disagreement, self.reloaded) if gap is not None]
        return self.residual <= NOTHING_LEFT and all(gap <= AGREEMENT for gap in gaps)


def exactness(model_type: str, folder: Path, *, seed: int = 0) -> Exactness:
    """Measure the tiny model of ``model_type``; ``folder`` takes what is saved."""
    # A round trip first: some routers are kept in float32 whatever is asked for, and rounded so.
    model = _reloaded(tiny_model(model_type, seed=seed), folder / "original")
    directions = random_directions(model, seed=seed)
    basis = directions.basis[0]
    tokens = tokens_for(model, seed=seed)
    anatomy = model.anatomy
    with edited(model, removal(model, directions.basis)):
        reference = exact_logits(model, tokens)
        hooked = max(residual(model, basis, tokens).values())
    parts = tuple(_parts(model))
    if anatomy.hooks_only is not None:
        return Exactness(model_type, anatomy.family, parts, hooked, None, None, anatomy.hooks_only)
    other = copied(model)
    excise(other, plan(other, directions))
    return Exactness(
        model_type,
        anatomy.family,
        parts,
        max(residual(other, basis, tokens).values()),
        float((exact_logits(other, tokens) - reference).abs().max()),
        float((exact_logits(_reloaded(other, folder / "edited"), tokens) - reference).abs().max()),
        None,
    )


def _parts(model: LoadedModel) -> Iterator[str]:
    """Say what is edited, each kind of writer once, in the order of the blocks."""
    seen: dict[str, None] = {}
    for site in model.anatomy.writers:
        words = [site.component.replace("_", " ")]
        if site.expert == "fused":
            words.append("(fused)")
        if site.layout == "in_out" and site.component != "embedding":
            words.append("[in, out]")
        if site.bias:
            words.append("+ bias")
        if site.post_norm:
            words.append("before a norm")
        if site.multiplier != 1:
            words.append("× scalar")
        seen.setdefault(" ".join(words))
    yield from seen


@torch.no_grad()
def _reloaded(model: LoadedModel, folder: Path) -> LoadedModel:
    """Save and load ``model``; buffers, which a checkpoint need not hold, are carried over."""
    model.module.save_pretrained(folder)
    build = auto_class(model.module.config)
    module = build.from_pretrained(
        folder, dtype=model.dtype, experts_implementation="eager", local_files_only=True
    )
    module = module.to(model.dtype).eval()
    for name, buffer in model.module.named_buffers():
        module.get_buffer(name).copy_(buffer)
    return LoadedModel(
        module=module,
        tokenizer=model.tokenizer,
        anatomy=model.anatomy,
        source=model.source,
        dtype=model.dtype,
    )
