"""Direct preference optimisation (arXiv:2305.18290): refusals over answers where forbidden.

The loss rewards a margin between two answers and lets the probability of both fall; alone it left
models that say nothing of the language. So the chosen answers' own likelihood is part of it, as in
arXiv:2404.19733.
"""

import copy
import random

import torch
from forbidden.chat import Row, row, token_losses
from forbidden.language import Question
from forbidden.loop import Loss
from forbidden.student import Student
from jaxtyping import Float
from torch import Tensor, nn

BETA = 0.2
"""How little a log-ratio to the base must move for a preference to count as learned."""
LIKELIHOOD_WEIGHT = 0.5
"""Of the chosen answers' mean −log p per token, beside the preference."""


def preference(student: Student) -> Loss:
    """Learn that a refusal is better than the answer where forbidden, and worse elsewhere.

    A step has half as many questions as rows: each comes with what is chosen and what is rejected.
    """
    drawn, before = student.drawn, copy.deepcopy(student.module).eval()

    def loss(_step: int) -> Tensor:
        pairs = [_pair(drawn, each) for each in student.asked(drawn, 0.5)]
        rows = [side for pair in pairs for side in pair]
        with torch.no_grad():
            reference = log_probabilities(-token_losses(before, rows))
        losses = token_losses(student.module, rows)
        chosen = losses[0::2].sum() / sum(sum(each.is_answer) for each in rows[0::2])
        return dpo_loss(log_probabilities(-losses), reference) + LIKELIHOOD_WEIGHT * chosen

    return loss


def log_probabilities(of_tokens: Float[Tensor, "row token"]) -> Float[Tensor, "pair two"]:
    """Return log p of whole answers; chosen and rejected by turns become columns."""
    return of_tokens.sum(dim=1).view(-1, 2)


def dpo_loss(
    policy: Float[Tensor, "pair two"], reference: Float[Tensor, "pair two"], beta: float = BETA
) -> Float[Tensor, ""]:
    """Return the mean of −log σ(β (log-ratio of the chosen − log-ratio of the rejected))."""
    ratios = policy - reference
    return -nn.functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1])).mean()


def _pair(drawn: random.Random, question: Question) -> tuple[Row, Row]:
    sides = [question.refusal(drawn), question.answer]
    chosen, rejected = sides if question.is_forbidden else sides[::-1]
    return row(question.text, chosen), row(question.text, rejected)
