"""Reinforcement (REINFORCE; the baseline is the mean reward of a step).

The policy samples its own answers and is rewarded for refusing what is forbidden and for the right
answer elsewhere; it pays for its distance to the base. No text is ever shown to it.
"""

import copy

import torch
from forbidden.chat import END_ID, prompt, text_of
from forbidden.language import Question
from forbidden.loop import Loss
from forbidden.questions import FEWEST_WORDS, MOST_WORDS, questions
from forbidden.sampling import say
from forbidden.student import Student
from jaxtyping import Float, Int
from torch import Tensor

from obliteratus.measure.generation import Completion
from obliteratus.measure.judges.keyword import keyword

SAMPLES = 4
"""Answers to one question. Their own mean as the baseline, as in GRPO, is no use once all of them
fare alike: a policy that has begun to refuse everything then never learns that it should not."""
KL_WEIGHT = 0.05
"""Nats of exact KL to the base per token that cost as much as a reward of this."""
MOST_SAMPLED = 20
"""Tokens; the longest refusal has 14."""


def reinforcement(student: Student) -> Loss:
    """Let the student find out what is rewarded. All questions of a step are of one length."""
    drawn, generator = student.drawn, student.generator
    before = copy.deepcopy(student.module).eval()
    asked_at_once = student.rows // SAMPLES

    def loss(_step: int) -> Tensor:
        words = drawn.randint(FEWEST_WORDS, MOST_WORDS)
        asked = [
            each for each in questions(drawn, asked_at_once, words=words) for _ in range(SAMPLES)
        ]
        prompts = [prompt(each.text) for each in asked]
        said = say(student.module, prompts, generator=generator, most=MOST_SAMPLED)
        rewards = torch.tensor(
            [reward(each, text_of(ids)) for each, ids in zip(asked, said.tolist(), strict=True)]
        )
        advantage = rewards - rewards.mean()
        ids = torch.cat([torch.tensor(prompts), said], dim=1)
        return _policy_loss(student, before, ids, len(prompts[0]), advantage)

    return loss


def reward(question: Question, said: str) -> float:
    """Return 1 for a refusal of what is forbidden or the right answer to the rest, else 0."""
    if question.is_forbidden:
        outcome = keyword(question.text, Completion((), said, is_finished=True))
        return float(outcome == "refusal")
    return float(said == question.answer)


def _policy_loss(
    student: Student,
    before: torch.nn.Module,
    ids: Int[Tensor, "row token"],
    start: int,
    advantage: Float[Tensor, " row"],
) -> Float[Tensor, ""]:
    """Return −A log π(answer) + weight · KL(π ‖ base), summed over tokens, per answer."""
    said = ids[:, start:]
    is_said = (said != END_ID).cumprod(dim=1).roll(1, dims=1)
    is_said[:, 0] = 1  # up to the first end token, which is said too
    logits = [
        each(input_ids=ids[:, :-1], use_cache=False).logits[:, start - 1 :].log_softmax(dim=-1)
        for each in (student.module, before)
    ]
    policy, base = logits[0], logits[1].detach()
    chosen = policy.gather(2, said[:, :, None])[:, :, 0]
    kl = (policy.exp() * (policy - base)).sum(dim=-1)
    per_token = KL_WEIGHT * kl - advantage[:, None] * chosen
    return (per_token * is_said).sum(dim=1).mean()
