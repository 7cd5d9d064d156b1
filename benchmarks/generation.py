"""How fast answers are generated, beside a plain loop over ``model.generate``.

    python benchmarks/generation.py MODEL [--prompts N] [--tokens N] [--set harmful|harmless|both]

MODEL is a name of the catalogue, a Hub id, a folder or a .gguf file. The prompts are built-in ones
in their order, harmful ones first, spread over the categories. The plain loop answers 16 at a time,
padded on the left, greedily, with the same tokens and stop tokens. Ours is what VERIFY does; then
the same where an answer stops when the keyword judge is certain, and where it also stops as
compliance after 36 tokens unless its prompt is audited. Here that goes for all prompts; VERIFY
stops answers to harmful prompts and look-alikes only.

The four take turns, so that a slow minute of the machine meets all of them; ratios are those of a
turn, and printed are their median and range. Completions of the first turn are compared by token;
where two differ, the first different token and the gap of the two logits tell a tie from a mistake.
Nothing that the model says is printed.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch

from obliteratus.measure.early_stop import EarlyStop, early_stop
from obliteratus.measure.generation import NEUTRAL, Completion, generate, stop_tokens
from obliteratus.measure.judges.base import Exchange, Judge, Ruling, judge_named
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.prompts.builtin import refusal
from obliteratus.prompts.spread import spread_indices
from obliteratus.settings import EarlyStopping
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.proportion import wilson

PLAIN_BATCH = 16
WARM_UP_TOKENS = 2
Side = Literal["harmful", "harmless", "both"]


@dataclass(frozen=True)
class Difference:
    """Where two completions of one prompt part: the token, and how far apart the two logits are."""

    prompt: int
    token: int
    gap: float


def prompts(side: Side, count: int) -> tuple[str, ...]:
    """Return ``count`` built-in prompts of one side, or half of each, the harmful ones first."""
    contrast = refusal()
    if side == "both":
        half = count // 2
        parts = ((contrast.harmful, count - half), (contrast.harmless, half))
    else:
        parts = ((contrast.harmful if side == "harmful" else contrast.harmless, count),)
    return tuple(
        rows[index].text for rows, share in parts for index in spread_indices(len(rows), share)
    )


@torch.no_grad()
def plain(model: LoadedModel, encoded: Encoded, tokens: int) -> list[tuple[int, ...]]:
    """Return the completions of ``model.generate`` in batches of 16, padded on the left."""
    config = copy.deepcopy(model.module.generation_config)
    for name, neutral in NEUTRAL.items():
        if getattr(config, name, None) not in neutral:
            setattr(config, name, neutral[-1])
    config.do_sample, config.max_new_tokens, config.pad_token_id = False, tokens, 0
    config.temperature = config.top_p = config.top_k = None
    stops, found = stop_tokens(model), list[tuple[int, ...]]()
    for first in range(0, len(encoded), PLAIN_BATCH):
        rows = encoded.ids[first : first + PLAIN_BATCH]
        width = max(map(len, rows))
        ids = torch.tensor([(0,) * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        module: Any = model.module
        output = module.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
        found += [until_stop(row[width:].tolist(), stops) for row in output]
    return found


def until_stop(tokens: Sequence[int], stops: frozenset[int]) -> tuple[int, ...]:
    """Return ``tokens`` up to the first stop token, which is kept; the rest is padding."""
    end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens))
    return tuple(tokens[: end + 1])


@torch.no_grad()
def difference(
    model: LoadedModel, encoded: Encoded, prompt: int, one: Sequence[int], other: Sequence[int]
) -> Difference:
    """Return where two completions of ``prompt`` part, by the logits of the prompt run alone."""
    pairs = enumerate(zip(one, other, strict=False))
    token = next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
    if token == min(len(one), len(other)):
        return Difference(prompt, token, float("inf"))  # one is the beginning of the other
    ids = torch.tensor([(*encoded.ids[prompt], *one[:token])], device=model.device)
    logits = model.module(input_ids=ids, use_cache=False).logits[0, -1].float()
    return Difference(prompt, token, float((logits[one[token]] - logits[other[token]]).abs()))


def rulings(
    judge: Judge, texts: Sequence[str], completions: Sequence[Completion]
) -> tuple[Ruling, ...]:
    """Return what ``judge`` says of the completions."""
    return judge.read([Exchange(t, c) for t, c in zip(texts, completions, strict=True)])


def identical(one: Sequence[object], other: Sequence[object]) -> Estimate:
    """Return the share of equal pairs."""
    return wilson(sum(a == b for a, b in zip(one, other, strict=True)), len(one))


@dataclass(frozen=True)
class Contest:
    """The plain loop and ours on the same prompts."""

    model: LoadedModel
    texts: tuple[str, ...]
    encoded: Encoded
    tokens: int
    judge: Judge

    def stops(self) -> dict[str, EarlyStop | None]:
        """Return our ways to answer, by what stops an answer."""
        kinds: dict[str, EarlyStopping] = {
            "ours": "off",
            "certain": "certain",
            "bounded": "bounded",
        }
        return {
            name: early_stop(kind, self.judge, self.texts, self.tokens)
            for name, kind in kinds.items()
        }

    def turn(self, tokens: int) -> tuple[dict[str, float], dict[str, tuple[Completion, ...]]]:
        """Return the seconds of each way to answer, and its completions."""
        start = time.perf_counter()
        said = plain(self.model, self.encoded, tokens)
        seconds = {"plain": time.perf_counter() - start}
        decode, stops = self.model.tokenizer.decode, stop_tokens(self.model)
        found = {
            "plain": tuple(
                Completion(ids, str(decode(list(ids), skip_special_tokens=True)), ids[-1] in stops)
                for ids in said
            )
        }
        for name, enough in self.stops().items():
            start = time.perf_counter()
            found[name] = generate(
                self.model, self.encoded, max_new_tokens=tokens, task="answers", enough=enough
            )
            seconds[name] = time.perf_counter() - start
        return seconds, found

    def report(self, repeats: int) -> list[str]:
        """Take ``repeats`` turns and return what is printed."""
        _ = self.turn(WARM_UP_TOKENS)  # first use of a kernel is slower
        turns = [self.turn(self.tokens) for _ in range(repeats)]
        found = turns[0][1]
        written = sum(len(completion.token_ids) for completion in found["plain"])
        verdicts = {name: rulings(self.judge, self.texts, found[name]) for name in found}
        lines = [
            f"{len(self.texts)} prompts, up to {self.tokens} tokens, {written} in all; threads "
            f"{torch.get_num_threads()}, load {psutil.getloadavg()[0]:.1f}, {repeats} turns",
            f"{'':8}  seconds  tokens/s   times faster       same verdicts",
        ]
        for name in found:
            middle = statistics.median(seconds[name] for seconds, _ in turns)
            ratios = sorted(seconds["plain"] / seconds[name] for seconds, _ in turns)
            faster = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            same = identical(verdicts[name], verdicts["plain"])
            rate = written / middle
            lines.append(f"{name:8}  {middle:7.1f}  {rate:8.1f}   {faster:17}  {share(same)}")
        return lines + self.tokens_compared(found) + self.stopped(found, verdicts)

    def tokens_compared(self, found: dict[str, tuple[Completion, ...]]) -> list[str]:
        """Return how many of our whole completions are those of the plain loop, and the others."""
        one, other = ([each.token_ids for each in found[name]] for name in ("plain", "ours"))
        lines = [f"identical completions: {share(identical(one, other))}"]
        for prompt, (mine, theirs) in enumerate(zip(other, one, strict=True)):
            if mine != theirs:
                parts = difference(self.model, self.encoded, prompt, mine, theirs)
                lines.append(
                    f"  prompt {parts.prompt}: from token {parts.token}, where the two logits are "
                    f"{parts.gap:.1e} apart"
                )
        return lines

    def stopped(
        self,
        found: dict[str, tuple[Completion, ...]],
        verdicts: dict[str, tuple[Ruling, ...]],
    ) -> list[str]:
        """Return how many answers were stopped, and what the audit found."""
        lines = list[str]()
        for name, enough in self.stops().items():
            if enough is not None:
                tally = enough.tally(self.model, found[name], verdicts[name])
                lines.append(
                    f"{name}: {tally.certain} stopped as certain, {tally.bounded} at the bound; of "
                    f"{tally.audited} audited there {tally.changed} changed later"
                )
        return lines


def share(estimate: Estimate) -> str:
    """Return a share with its Wilson interval."""
    low, high = estimate.interval
    return f"{estimate.value:.1%} ({low:.1%} to {high:.1%})"


def contest(model: LoadedModel, texts: tuple[str, ...], tokens: int) -> Contest:
    """Return the comparison on ``texts``."""
    return Contest(model, texts, encode(model, texts), tokens, judge_named("keyword"))


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description="Measure generation.")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--set", choices=["harmful", "harmless", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = prompts(options.set, options.prompts)
    print(*contest(summon(options.model), texts, options.tokens).report(options.repeats), sep="\n")


if __name__ == "__main__":
    main()
