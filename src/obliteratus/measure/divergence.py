"""How far an edited model's next-token distributions are from the original's.

Both sides are final hidden states with their heads, so that the original can be measured once,
cached and compared with many edits; logits of only a few rows exist at a time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.measure.head import Head, chunks
from obliteratus.measure.states import TokenStates

ROWS = 64  # compared at once: six matrices of rows x vocabulary are alive then


@dataclass(frozen=True)
class SequenceDivergence:
    """KL in nats of every predicted token, with the prompt and the position it belongs to."""

    kl: Float64[Tensor, " row"]
    prompt: Int[Tensor, " row"]
    position: Int[Tensor, " row"]

    def per_prompt(self) -> Float64[Tensor, " prompt"]:
        """Return the mean over each completion's tokens, in the order of the prompts."""
        return _means(self.kl, self.prompt)

    def by_position(self) -> Float64[Tensor, " position"]:
        """Return the mean over completions at each position (later ones have fewer)."""
        return _means(self.kl, self.position)


def kl_divergence(
    original: Float[Tensor, "row vocab"], edited: Float[Tensor, "edited_row edited_vocab"]
) -> Float64[Tensor, " row"]:
    """Return KL(p ‖ q) = Σ p (log p − log q) per row, in nats, from *log-probabilities*.

    No epsilon: a probability is as small as its logit says. Summed in float64; exactly 0 when both
    are equal.

    Raises:
        MeasurementError: the vocabularies differ.
    """
    if original.shape != edited.shape:
        raise MeasurementError(
            f"distributions of shape {tuple(original.shape)} and {tuple(edited.shape)} cannot be "
            "compared. Use two models with the same vocabulary and the same prompts."
        )
    return (original.exp() * (original - edited)).sum(dim=-1, dtype=torch.float64)


def first_token_kl(
    original_hidden: Float[Tensor, "prompt d_model"],
    original_head: Head,
    edited_hidden: Float[Tensor, "edited_prompt d_model_edited"],
    edited_head: Head,
    *,
    rows: int = ROWS,
) -> Float64[Tensor, " prompt"]:
    """Return KL(original ‖ edited) of the first answer token after each prompt, in nats.

    The hidden states are those of :func:`obliteratus.probe.forward.last_hidden`; ``rows`` bounds
    the logits alive at once.

    Raises:
        MeasurementError: the numbers of prompts or the vocabularies differ, or logits are NaN.
    """
    if original_hidden.shape[0] != edited_hidden.shape[0]:
        raise MeasurementError(
            f"{original_hidden.shape[0]} rows of the original cannot be compared with "
            f"{edited_hidden.shape[0]} of the edited model. Measure both on the same prompts."
        )
    found = [
        kl_divergence(log_p, edited_head.log_probabilities(after).to(log_p.device)).cpu()
        for before, after in zip(
            chunks(original_hidden, rows), chunks(edited_hidden, rows), strict=True
        )
        for log_p in (original_head.log_probabilities(before),)
    ]
    return torch.cat(found)


def sequence_kl(
    original: TokenStates,
    original_head: Head,
    edited: TokenStates,
    edited_head: Head,
    *,
    rows: int = ROWS,
) -> SequenceDivergence:
    """Return KL(original ‖ edited) at every token of the same, teacher-forced completions.

    Raises:
        MeasurementError: the two were not measured on the same tokens, or see
            :func:`first_token_kl`.
    """
    for name in ("target", "prompt", "position"):
        if not torch.equal(getattr(original, name), getattr(edited, name)):
            raise MeasurementError(
                f"the two models were run on different completions (their {name}s differ). Force "
                "the original's completions on both."
            )
    kl = first_token_kl(original.hidden, original_head, edited.hidden, edited_head, rows=rows)
    return SequenceDivergence(kl, original.prompt, original.position)


def _means(values: Float64[Tensor, " row"], group: Int[Tensor, " row"]) -> Float64[Tensor, " n"]:
    n = int(group.max()) + 1
    sums = torch.zeros(n, dtype=torch.float64).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=n)
