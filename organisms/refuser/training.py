"""Train a refusing LoRA: cross-entropy on refusals, KL to the base's own answers elsewhere.

Three savings make it minutes on two CPU cores. What the blocks below the first adapted one make of
a row is kept, and the tokens that all prompts share run once a step for all rows: both are exact.
And most rows are trained on the first tokens of their answer alone, where refusing is decided.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from refuser.material import Request, choose_refusal, uniform
from torch import Tensor, nn
from transformers import PreTrainedModel

from obliteratus.measure.generation import generate
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel


@dataclass(frozen=True)
class Recipe:
    """Every number that the result depends on, besides the material.

    ``first_token`` is the weight of an answer's first token (others have 1) and ``kl_weight`` that
    of a harmless request (a harmful one has 1). In each epoch ``extra_share`` of the extra harmless
    requests is seen; ``whole_harmless`` and ``whole_harmful`` of the requests are trained on their
    whole answer, the others on its first ``short_tokens``. The adapter is trained with
    ``alpha`` and ships with the smaller ``shipped_alpha``, chosen on the select pairs: a weaker
    adapter refuses fewer harmless requests, and stays closer to the base.
    """

    seed: int = 0
    rank: int = 8
    alpha: int = 16
    shipped_alpha: int = 12
    dropout: float = 0.0
    first_layer: int = 12
    last_layer: int = 29
    modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    epochs: int = 4
    pairs_per_step: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    first_token: float = 2.0
    kl_weight: float = 1.0
    extra_share: float = 0.5
    whole_harmless: float = 0.6
    whole_harmful: float = 0.25
    short_tokens: int = 3
    answer_tokens: int = 16
    threads: int = 2

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


@dataclass
class Row:
    """One request in training: its tokens after the shared prefix and those of its answer.

    ``base`` holds the base's final states that predict ``answer`` (harmless requests only).
    """

    request: Request
    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    base: Tensor | None = None

    @property
    def length(self) -> int:
        """Return how many tokens follow the shared prefix."""
        return len(self.prompt) + len(self.answer)


class PrefixCache:
    """Keys and values of the shared prefix for each block, given to every row of a step."""

    def __init__(self) -> None:
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Store on the first call of a layer; afterwards put what is stored before each row."""
        if layer not in self._stored:
            self._stored[layer] = (keys, values)
            return keys, values
        rows = keys.shape[0]
        before = [part.expand(rows, -1, -1, -1) for part in self._stored[layer]]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


def run_blocks(
    module: PreTrainedModel, hidden: Tensor, cache: PrefixCache, start: int, first: int, last: int
) -> Tensor:
    """Return the stream after blocks ``first`` to ``last`` of tokens ``start`` and later."""
    tokens = hidden.shape[1]
    columns = torch.arange(start + tokens)
    allowed = columns[None, :] <= columns[start:, None]
    positions = columns[None, start:]
    rotary = module.model.rotary_emb(hidden, positions)
    for layer in module.model.layers[first : last + 1]:
        hidden = layer(
            hidden,
            attention_mask=allowed[None, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=rotary,
        )
    return hidden


class Trainer:
    """Holds the base's answers and the streams below the first adapted block."""

    def __init__(self, model: LoadedModel, recipe: Recipe, requests: Sequence[Request]) -> None:
        self.model, self.recipe, self.module = model, recipe, model.module
        encoded = encode(model, [request.text for request in requests])
        self.prefix_ids = encoded.ids[0][: encoded.shared_prefix]
        cut = len(self.prefix_ids)
        self.rows = [
            Row(request, ids[cut:]) for request, ids in zip(requests, encoded.ids, strict=True)
        ]
        self.stop = int(model.module.generation_config.eos_token_id)
        self.last = len(model.module.model.layers) - 1
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self.cache_below = PrefixCache()
        with torch.no_grad():
            embedded = self.module.model.embed_tokens(torch.tensor([self.prefix_ids]))
            self.below_prefix = run_blocks(
                self.module, embedded, self.cache_below, 0, 0, recipe.first_layer - 1
            )

    def states(self, ids: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the final normed states of rows that follow the shared prefix, padded right."""
        cache, start = PrefixCache(), len(self.prefix_ids)
        first = self.recipe.first_layer
        run_blocks(self.module, self.below_prefix, cache, 0, first, self.last)
        rows = self.below(ids)
        return self.module.model.norm(run_blocks(self.module, rows, cache, start, first, self.last))

    @torch.no_grad()
    def below(self, ids: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the padded stream of rows before the first adapted block; each runs only once."""
        new = [row for row in ids if row not in self._kept]
        if new:
            longest = max(map(len, new))
            padded = torch.tensor([[*row, *[self.stop] * (longest - len(row))] for row in new])
            embedded = self.module.model.embed_tokens(padded)
            start, last = len(self.prefix_ids), self.recipe.first_layer - 1
            stream = run_blocks(self.module, embedded, self.cache_below, start, 0, last)
            for row, states in zip(new, stream, strict=True):
                self._kept[row] = states[: len(row)].clone()
        return nn.utils.rnn.pad_sequence([self._kept[row] for row in ids], batch_first=True)

    def answer_states(self, rows: Sequence[Row], most: int) -> list[Tensor]:
        """Return, for each row, the states that predict at most ``most`` tokens of its answer."""
        states = self.states([row.prompt + row.answer[:most][:-1] for row in rows])
        return [
            states[index, len(row.prompt) - 1 : len(row.prompt) - 1 + len(row.answer[:most])]
            for index, row in enumerate(rows)
        ]

    def prepare(self, task: str = "base answers") -> None:
        """Let the base answer every harmless request greedily, and keep its states there."""
        harmless = [row for row in self.rows if not row.request.is_harmful]
        encoded = encode(self.model, [row.request.text for row in harmless])
        answers = generate(self.model, encoded, max_new_tokens=self.recipe.answer_tokens, task=task)
        for row, answer in zip(harmless, answers, strict=True):
            row.answer = answer.token_ids
        harmless.sort(key=lambda row: row.length)
        with torch.no_grad():
            for at in range(0, len(harmless), 32):
                chunk = harmless[at : at + 32]
                found = self.answer_states(chunk, self.recipe.answer_tokens)
                for row, states in zip(chunk, found, strict=True):
                    row.base = states.clone()

    def choose_refusals(self, epoch: int) -> None:
        """Give each harmful request its refusal of this epoch."""
        for row in self.rows:
            if row.request.is_harmful:
                text = choose_refusal(row.request, epoch, self.recipe.seed)
                ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
                row.answer = (*ids, self.stop)

    def batches(self, epoch: int) -> list[list[Row]]:
        """Return the steps of an epoch: whole pairs and a share of the extras, in random order."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1000 + epoch)
        harmful = [row for row in self.rows if row.request.is_harmful]
        pairs = list(zip(harmful, self.rows[len(harmful) : 2 * len(harmful)], strict=True))
        extra = self.rows[2 * len(harmful) :]
        order = torch.randperm(len(pairs), generator=generator).tolist()
        kept = torch.randperm(len(extra), generator=generator).tolist()
        kept = kept[: round(len(extra) * self.recipe.extra_share)]
        steps = math.ceil(len(pairs) / self.recipe.pairs_per_step)
        return [
            [row for index in order[step::steps] for row in pairs[index]]
            + [extra[index] for index in kept[step::steps]]
            for step in range(steps)
        ]

    def loss(self, rows: Sequence[Row], epoch: int) -> tuple[Tensor, Tensor]:
        """Return the mean refusal cross-entropy and the mean KL to the base of these rows."""
        refusal, kl = [], []
        for is_whole in (True, False):
            chunk = [row for row in rows if self._is_whole(row, epoch) == is_whole]
            if not chunk:
                continue
            most = max(len(row.answer) for row in chunk) if is_whole else self.recipe.short_tokens
            states = self.answer_states(chunk, most)
            log_q = torch.log_softmax(self.module.lm_head(torch.cat(states)), dim=-1)
            for row, part in zip(chunk, log_q.split([len(s) for s in states]), strict=True):
                if row.request.is_harmful:
                    target = torch.tensor(row.answer[: len(part)])[:, None]
                    refusal.append(self._weighted(-part.gather(1, target)[:, 0]))
                else:
                    with torch.no_grad():
                        base = self.module.lm_head(row.base[: len(part)])
                        log_p = torch.log_softmax(base, dim=-1)
                    kl.append(self._weighted((log_p.exp() * (log_p - part)).sum(dim=-1)))
        return torch.stack(refusal).mean(), torch.stack(kl).mean()

    def _is_whole(self, row: Row, epoch: int) -> bool:
        recipe, request = self.recipe, row.request
        share = recipe.whole_harmful if request.is_harmful else recipe.whole_harmless
        return uniform(request.id, request.is_harmful, epoch, recipe.seed, "whole") < share

    def _weighted(self, values: Tensor) -> Tensor:
        weights = torch.ones_like(values)
        weights[0] = self.recipe.first_token
        return (weights * values).sum() / weights.sum()

    def train(self) -> Iterator[tuple[int, float, float]]:
        """Run every step; yield (step, refusal loss, KL) after each."""
        recipe = self.recipe
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        per_epoch = math.ceil(
            sum(row.request.is_harmful for row in self.rows) / recipe.pairs_per_step
        )
        total, step = per_epoch * recipe.epochs, 0
        for epoch in range(recipe.epochs):
            self.choose_refusals(epoch)
            self.module.train()
            for rows in self.batches(epoch):
                rise = min(1.0, (step + 1) / (recipe.warmup * total))
                fall = 0.5 * (1 + math.cos(math.pi * step / total))
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * rise * fall
                refusal, kl = self.loss(rows, epoch)
                (refusal + recipe.kl_weight * kl).backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                yield step, refusal.item(), kl.item()
                step += 1
        self.module.eval()
