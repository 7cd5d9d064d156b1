"""What an edit before a post-norm costs: the scale it adds, and its distance from the ideal.

Behind a post-norm the write is g ⊙ z / rms(z). No weight can take R out of it and leave the rest:
the oblique edit leaves the ideal write times s = rms(z) / rms(z'), which depends on the token.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.edits.stream import filtered_pair, stream_rows
from obliteratus.errors import EditError
from obliteratus.models.loaded import LoadedModel
from obliteratus.operator.behind import norm_behind
from obliteratus.operator.edit import EditPlan, WeightEdit
from obliteratus.operator.hooks import edited

SCALE_GATE = 2.0
"""Past this scale of a write an edit of weights is no longer near the ideal: use hooks only."""


@dataclass(frozen=True)
class PostNormEffect:
    """Measured on real tokens, on the model before the edit.

    ``scale`` maps each post-normed writer to the smallest and largest s = rms(z) / rms(z') over
    tokens. ``logit_gap`` is rms(logits of the plan − logits of the ideal) and ``logit_change``
    rms(logits of the ideal − original logits), its yardstick, over all tokens.
    """

    scale: Mapping[str, tuple[float, float]]
    logit_gap: float
    logit_change: float

    @property
    def largest_scale(self) -> float:
        """The scale furthest from 1, counted as max(s, 1/s); above ``SCALE_GATE`` is too far."""
        return max((self._change(name) for name in self.scale), default=1.0)

    @property
    def worst(self) -> str | None:
        """The writer with the scale furthest from 1."""
        return max(self.scale, key=self._change, default=None)

    def _change(self, name: str) -> float:
        low, high = self.scale[name]
        return max(1 / low, high)

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "largest_scale": self.largest_scale}


def check_post_norm(
    model: LoadedModel, plan: EditPlan, prompts: Sequence[Sequence[int]]
) -> PostNormEffect | None:
    """Return :func:`post_norm_effect`, or None where ``plan`` edits nothing behind a post-norm.

    Raises:
        EditError: a write would change its scale by more than ``SCALE_GATE``.
    """
    if not any(edit.site.post_norm is not None and edit.strengths.any() for edit in plan):
        return None
    effect = post_norm_effect(model, plan, prompts)
    if effect.largest_scale > SCALE_GATE:
        raise EditError(
            f"behind its post-norm {effect.worst} would grow or shrink by a factor of "
            f"{effect.largest_scale:.1f} on some tokens (at most {SCALE_GATE:g}), which no weights "
            "can undo. Lower edit.strength or distill.max_rank, or use hooks at run time."
        )
    return effect


@torch.no_grad()
def post_norm_effect(
    model: LoadedModel, plan: EditPlan, prompts: Sequence[Sequence[int]]
) -> PostNormEffect:
    """Compare ``plan``, by hooks before the norms, with the ideal removal behind them.

    ``model`` is the unedited one, ``prompts`` are token ids. Norm preservation is ignored, because
    a post-norm undoes an overall scale.

    Raises:
        EditError: the plan edits nothing behind a post-norm, or there are no prompts.
    """
    behind = [edit for edit in plan if edit.site.post_norm is not None]
    if not behind or not prompts:
        raise EditError("there is nothing to compare: no edit behind a post-norm, or no prompts.")
    ideal = [_ideal(model, edit) for edit in plan]
    scale: dict[str, tuple[float, float]] = {}
    gaps: list[float] = []
    changes: list[float] = []
    for ids in prompts:
        tokens = torch.tensor([list(ids)], device=model.device)
        original = _logits(model, tokens)
        with edited(model, ideal, ignore_norm=True):
            wanted = _logits(model, tokens)
        with _scales(model, behind, scale), edited(model, plan, ignore_norm=True):
            planned = _logits(model, tokens)
        gaps.append(float((planned - wanted).square().mean()))
        changes.append(float((wanted - original).square().mean()))
    mean_gap, mean_change = (sum(values) / len(values) for values in (gaps, changes))
    return PostNormEffect(scale, mean_gap**0.5, mean_change**0.5)


def _logits(model: LoadedModel, tokens: Tensor) -> Float64[Tensor, "batch token vocab"]:
    return model.module(input_ids=tokens, use_cache=False).logits.to(torch.float64)


def _ideal(model: LoadedModel, edit: WeightEdit) -> WeightEdit:
    """Return the same edit of the stream, acting behind the post-norm."""
    if edit.site.post_norm is None:
        return edit
    rows = stream_rows(model, edit)
    write, read = filtered_pair(model, edit) or (rows, rows)
    norm = edit.site.post_norm.name.rpartition(".")[0]
    site = dataclasses.replace(edit.site, module=norm, post_norm=None)
    return dataclasses.replace(
        edit, site=site, write_basis=write, read_basis=read, stream_basis=None
    )


@contextlib.contextmanager
def _scales(
    model: LoadedModel, behind: Sequence[WeightEdit], scale: dict[str, tuple[float, float]]
) -> Generator[None]:
    """Record rms(z) / rms(z') of each write; to be entered before the edit's own hooks.

    Behind a LayerNorm z stands for C z.
    """

    def watch(edit: WeightEdit) -> Any:
        norm = norm_behind(model, edit.site)
        assert norm is not None  # `behind` holds edits behind a norm

        def hook(_module: object, _args: object, output: Tensor) -> None:
            z = output.to(edit.read_basis)
            after = z - ((z @ edit.read_basis.T) * edit.strengths) @ edit.write_basis
            before, after = (torch.linalg.vector_norm(norm.centred(x), dim=-1) for x in (z, after))
            s = before / after
            low, high = scale.get(edit.site.name, (float("inf"), 0.0))
            scale[edit.site.name] = (min(low, float(s.min())), max(high, float(s.max())))

        return hook

    with contextlib.ExitStack() as stack:
        for edit in behind:
            module = model.module.get_submodule(edit.site.module)
            stack.callback(module.register_forward_hook(watch(edit)).remove)
        yield
