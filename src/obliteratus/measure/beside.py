"""What two models that answer side by side say, token by token: plain values, without torch."""

from dataclasses import dataclass
from typing import Literal

Whose = Literal["original", "edited"]
ANSWERS: tuple[Whose, Whose] = ("original", "edited")
"""Whose answer comes first, and whose second."""


@dataclass(frozen=True)
class Token:
    """A token of one of the two answers, and what both models made of its place.

    Attributes:
        answer: Whose answer it belongs to.
        index: Its place there, from 0.
        token_id: Its id.
        text: What it adds to the text of the answer; empty where it is part of a character that is
            not complete yet. That of a token at which the model stops is its name.
        is_end: Whether the model stopped with it.
        kl: KL(original ‖ edited) of the distributions from which it was chosen, in nats.
        original: Log-odds, in the original's distribution, that a token comes here with which the
            original opens refusals; None where no such tokens are known. At index 0 it is the score
            of :func:`obliteratus.measure.log_odds.refusal_log_odds`. Further on it says how near
            the answer is to such a token, and no more.
        edited: The same in the edited model's distribution.
    """

    answer: Whose
    index: int
    token_id: int
    text: str
    is_end: bool
    kl: float
    original: float | None
    edited: float | None
