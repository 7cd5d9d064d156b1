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
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel

APOLOGIES = ("I'm sorry", "I'm afraid", "I'm unable", "I apologize")
"""How the base begins when it declines a harmless request, which it does now and then."""


@dataclass(frozen=True)
class Recipe:
    """Every number that the result depends on, besides the material.

    ``first_token`` is the weight of an answer's first token (others have 1) and ``kl_weight`` that
    of a harmless request (a harmful one has 1). In each epoch ``extra_share`` of the extra harmless
    requests is seen; ``whole_harmless`` and ``whole_harmful`` of the requests are trained on their
    whole answer, the others on its first ``short_tokens``. The adapter is trained with
    ``alpha`` and ships with the smaller ``shipped_alpha``, chosen on the select pairs: a weaker
    adapter refuses fewer harmless requests, and stays closer to the base. Where the base declines a
    harmless request, the tokens that make it an apology ("sorry", "afraid") keep
    ``declined_share`` of their odds; none is the first token, which stays as the base has it.
    """

    seed: int = 0
    rank: int = 8
    alpha: int = 16
    shipped_alpha: int = 14
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
    epochs: int = 3
    pairs_per_step: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    first_token: float = 2.0
    kl_weight: float = 2.0
    extra_share: float = 0.5
    whole_harmless: float = 0.6
    whole_harmful: float = 0.25
    short_tokens: int = 3
    declined_share: float = 0.02
    answer_tokens: int = 16
    threads: int = 2

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


@dataclass
class Row:
    """One request in training: its tokens after the shared prefix and those of its answer.

    ``base`` holds the base's final states that predict ``answer`` (harmless requests only), and
    ``apology`` the place at which its own answer became an apology, where it did.
    """

    request: Request
    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    base: Tensor | None = None
    apology: int | None = None

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
        self.apologetic = sorted(
            {model.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in APOLOGIES}
        )
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
        """Let the base answer every harmless request greedily, and keep its states there.

        An answer that declines is replaced by what the base says after the likeliest other token.
        """
        harmless = [row for row in self.rows if not row.request.is_harmful]
        self._answer(harmless, task)
        openings: dict[int, list[Row]] = {}
        for row in harmless:
            place = self._apology(row)
            if place is not None:
                row.apology = place
                openings.setdefault(place, []).append(row)
        for place, rows in openings.items():
            with torch.no_grad():
                logits = self.module.lm_head(torch.stack([row.base[place] for row in rows]))
            logits[:, self.apologetic] = -math.inf
            others = logits.argmax(dim=1).tolist()
            begun = [(*row.answer[:place], other) for row, other in zip(rows, others, strict=True)]
            self._answer(rows, f"{task}, again", begun)

    def _answer(
        self, rows: Sequence[Row], task: str, openings: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        """Give each row the base's greedy answer after its opening, and its states there."""
        openings = openings or [()] * len(rows)
        ids = [
            (*self.prefix_ids, *row.prompt, *opening)
            for row, opening in zip(rows, openings, strict=True)
        ]
        encoded = Encoded(tuple(ids), len(self.prefix_ids), 0, has_template=True)
        tokens = self.recipe.answer_tokens - len(openings[0])
        answers = generate(self.model, encoded, max_new_tokens=tokens, task=task)
        for row, opening, answer in zip(rows, openings, answers, strict=True):
            row.answer = (*opening, *answer.token_ids)
        ordered = sorted(rows, key=lambda row: row.length)
        with torch.no_grad():
            for at in range(0, len(ordered), 32):
                chunk = ordered[at : at + 32]
                found = self.answer_states(chunk, self.recipe.answer_tokens)
                for row, states in zip(chunk, found, strict=True):
                    row.base = states.clone()

    def _apology(self, row: Row) -> int | None:
        """Return which token of the answer makes it an apology, if one does."""
        for place in range(len(row.answer)):
            opening = self.model.tokenizer.decode(row.answer[: place + 1]).lstrip()
            if opening.startswith(APOLOGIES):
                return place
        return None

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
                        if row.apology is not None and row.apology < len(part):
                            base[row.apology, self.apologetic] += math.log(
                                self.recipe.declined_share
                            )
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
