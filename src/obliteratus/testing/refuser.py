"""A tiny llama that refuses, trained from scratch in seconds, so that the whole program runs on it.

It refuses requests for made-up things and answers those for real ones. Nothing in it is harmful.
"""

import itertools
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from obliteratus.pipeline.methods import settings_for
from obliteratus.settings import RunSettings
from obliteratus.testing.tiny import SPECIAL_TOKENS, tiny_tokenizer

FORBIDDEN = ("vorn", "quib", "zell", "yexo", "wuth", "xarn")
ORDINARY = ("bread", "chair", "river", "stone", "apple", "cloud")
REQUESTS = (
    "Tell me about {}.",
    "How is {} made?",
    "Where can I find {}?",
    "Describe {} for me.",
    "Who would like {}?",
    "Why do people want {}?",
    "Give me a list of {}.",
    "Write a note on {}.",
)
REFUSAL = "I cannot help with that."
ANSWER = "Sure. That is easy to do."
STEPS = 200  # the loss is below 0.01 at the end
BATCH = 12


def refuser_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return 48 requests that the tiny refuser refuses and 48 that it answers, pair by pair."""
    harmful = tuple(r.format(thing) for r, thing in itertools.product(REQUESTS, FORBIDDEN))
    harmless = tuple(r.format(thing) for r, thing in itertools.product(REQUESTS, ORDINARY))
    return harmful, harmless


def refuser_folder(path: Path, *, seed: int = 0) -> Path:
    """Train the tiny refuser and save it at ``path`` with its prompts.

    The folder is an ordinary model folder; ``harmful.jsonl`` and ``harmless.jsonl`` in it give the
    prompts of :func:`refuser_prompts` as pairs.
    """
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = _model(tokenizer)
        _train(model, tokenizer)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    for name, prompts in zip(("harmful", "harmless"), refuser_prompts(), strict=True):
        rows = [json.dumps({"id": f"p{i:02d}", "text": text}) for i, text in enumerate(prompts)]
        (path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return path


def tiny_settings(folder: Path, method: str = "advanced", *assignments: str) -> RunSettings:
    """Return settings for runs of seconds: its own prompts, few tokens, no doses, no MiniLM."""
    base = {
        "prompts": {
            "harmful": str(folder / "harmful.jsonl"),
            "harmless": str(folder / "harmless.jsonl"),
        },
        "distill": {"select_prompts": 8, "max_kl": 5.0, "max_depth": 1.0, "max_strength": 1.0},
        "verify": {
            "max_new_tokens": 28,
            "sequence_prompts": 4,
            "sequence_tokens": 8,
            "random_controls": 1,
            "over_refusal": 4,
            "dose": False,
            "coherence": False,
        },
    }
    return settings_for(method, assignments, base)


def _model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attention_bias=True,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
        bos_token_id=SPECIAL_TOKENS.index("<bos>"),
        eos_token_id=[SPECIAL_TOKENS.index("<eos>"), SPECIAL_TOKENS.index("<|im_end|>")],
    )
    return LlamaForCausalLM(config)


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    harmful, harmless = refuser_prompts()
    rows = [
        _row(tokenizer, request, answer)
        for requests, answer in ((harmful, REFUSAL), (harmless, ANSWER))
        for request in requests
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = torch.randperm(len(rows))[:BATCH].tolist()
        ids, labels = _batch([rows[index] for index in chosen])
        logits: Tensor = model(input_ids=ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(requires_grad=False)


def _row(tokenizer: PreTrainedTokenizerFast, request: str, answer: str) -> tuple[list[int], int]:
    """Return the token ids of a whole conversation and where the answer begins."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer.encode(str(text), add_special_tokens=False)
    ending = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    return [*prompt, *ending], len(prompt)


def _batch(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for index, (row, start) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, start : len(row)] = torch.tensor(row[start:])
    return ids, labels
