"""The sections of a report, each from a pair of measurements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from obliteratus.errors import MeasurementError
from obliteratus.measure.agreement import Agreement
from obliteratus.measure.divergence import first_token_kl, sequence_kl
from obliteratus.measure.head import Head, chunks
from obliteratus.measure.log_odds import RefusalTokens, log_odds
from obliteratus.measure.outcomes import OUTCOMES
from obliteratus.measure.words import REFUSAL, Words
from obliteratus.measure.writing import Completion
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.verify.identity import digest
from obliteratus.verify.measurement import Answers, Measurement
from obliteratus.verify.records.judging import PromptSet
from obliteratus.verify.records.prompts import PromptOutcomes
from obliteratus.verify.report import Category, DocumentChange, Position, Row, Turned
from obliteratus.verify.rows import (
    corrected,
    divergence_row,
    mean_row,
    outcome_row,
    perplexity_row,
    position_rows,
    share_row,
)

CLASSES: tuple[PromptSet, ...] = ("harmful", "harmless", "lookalikes")

Embed = Callable[[Sequence[str]], Float[Tensor, "text dimension"]]
"""Maps texts to vectors; their cosine is the similarity of two texts."""


@dataclass(frozen=True)
class Pair:
    """Both measurements with the heads that make logits of their hidden states.

    ``words`` are those of the behaviour that the judge looked for.
    """

    original: Measurement
    edited: Measurement
    original_head: Head
    edited_head: Head
    seed: int
    words: Words = REFUSAL


def outcome_rows(pair: Pair, judge: Agreement | None = None) -> list[Row]:
    """Return the shares of refusals, answers and degenerate completions; refusal of harm first.

    With ``judge`` the shares of refusals are also corrected for its errors. Where the judge looked
    for harm, the share of answers that do harm comes last.
    """
    original, edited, words = pair.original, pair.edited, pair.words
    bad, good = (original.harmful, edited.harmful), (original.harmless, edited.harmless)
    rows = [
        outcome_row("refusal_harmful", f"{words.shows} {words.asked}", *bad, "refusal"),
        outcome_row("success_harmful", f"{words.spares} {words.asked}", *bad, "compliance"),
        outcome_row("degenerate_harmful", f"degenerate, {words.provoking}", *bad, "degenerate"),
        outcome_row("refusal_harmless", f"{words.shows} {words.partners}", *good, "refusal"),
        outcome_row("degenerate_harmless", f"degenerate, {words.neutral}", *good, "degenerate"),
    ]
    if original.lookalikes is not None and edited.lookalikes is not None:
        safe = (original.lookalikes, edited.lookalikes)
        label = f"{words.shows} safe look-alikes"
        rows.append(outcome_row("over_refusal", label, *safe, "refusal"))
    if judge is not None:
        is_refusal = [row.key.startswith(("refusal", "over_refusal")) for row in rows]
        rows = [
            corrected(row, judge, seed=pair.seed) if mine else row
            for row, mine in zip(rows, is_refusal, strict=True)
        ]
    harm = [each.harmful.harmful for each in (original, edited)]
    if harm[0] is not None and harm[1] is not None:
        rows.append(share_row("harm_harmful", "says what does harm", harm[0], harm[1]))
    return rows


def log_odds_rows(pair: Pair, tokens: RefusalTokens) -> list[Row]:
    """Return the refusal log-odds of the first token, for both classes."""
    rows: list[Row] = []
    for name, prompts in (("harmful", pair.words.provoking), ("harmless", pair.words.neutral)):
        before = prompt_log_odds(getattr(pair.original.first, name), pair.original_head, tokens)
        after = prompt_log_odds(getattr(pair.edited.first, name), pair.edited_head, tokens)
        label = f"{pair.words.noun} log-odds, {prompts}"
        rows.append(mean_row(f"log_odds_{name}", label, "log-odds", before, after, seed=pair.seed))
    return rows


def prompt_log_odds(
    hidden: Float[Tensor, "prompt d_model"], head: Head, tokens: RefusalTokens
) -> Float64[Tensor, " prompt"]:
    """Return the refusal log-odds of every prompt from its final hidden state."""
    return torch.cat(
        [log_odds(head.log_probabilities(rows), tokens.ids).cpu() for rows in chunks(hidden)]
    )


def divergence_rows(pair: Pair) -> tuple[list[Row], tuple[Position, ...], tuple[float, ...]]:
    """Return the KL of the first token and along the original's answers.

    With them come that along the answers by position, and that of the first token by prompt.
    """
    seed, before, after = pair.seed, pair.original, pair.edited
    heads = (pair.original_head, pair.edited_head)
    first = first_token_kl(before.first.harmless, heads[0], after.first.harmless, heads[1])
    floor = None
    if before.rerun is not None:
        again = before.first.harmless[list(before.rerun.prompts)]
        floor = first_token_kl(again, heads[0], before.rerun.hidden, heads[0])
    along = sequence_kl(before.forced.states, heads[0], after.forced.states, heads[1])
    rows = [
        divergence_row("kl_first", "KL of the first token", first, floor=floor, seed=seed),
        divergence_row("kl_sequence", "KL along its answers", along.per_prompt(), seed=seed),
    ]
    return rows, position_rows(along, seed=seed), tuple(first.tolist())


def perplexity_rows(pair: Pair) -> list[Row]:
    """Return perplexity on held-out documents and on the original's own answers."""
    before, after = pair.original, pair.edited
    return [
        perplexity_row(
            "perplexity_heldout",
            "perplexity, held-out text",
            before.heldout.nll,
            after.heldout.nll,
            before.heldout.tokens,
            seed=pair.seed,
        ),
        perplexity_row(
            "perplexity_own",
            "perplexity, own answers",
            before.forced.nll,
            after.forced.nll,
            before.forced.tokens,
            seed=pair.seed,
        ),
    ]


def coherence_rows(pair: Pair, embed: Embed) -> list[Row]:
    """Return the similarity of harmless answers: to the original's, and to their prompts.

    The null is the similarity to the original's answer to another prompt, half the set away so that
    its category differs; ``ceiling`` is what the original reaches when it is run again. Prompts at
    which a thought of one of the two was cut have no answer and are left out.

    Raises:
        MeasurementError: fewer than two prompts are left.
    """
    said = [measured.completions for measured in (pair.original, pair.edited)]
    kept = [row for row, both in enumerate(zip(*said, strict=True)) if not _any_is_cut(*both)]
    if len(kept) < 2:
        raise MeasurementError(
            f"{len(kept)} of {len(said[0])} harmless prompts have an answer of both models behind "
            "their thoughts, too few to compare. Raise verify.thought_tokens."
        )
    first, second = (_unit(embed([side[row].text for row in kept])) for side in said)
    asked = _unit(embed([pair.original.questions[row] for row in kept]))
    alike, shuffled = _cosine(first, second), _cosine(first.roll(len(first) // 2, dims=0), second)
    details: dict[str, float] = {}
    if pair.original.rerun is not None:
        again, place = pair.original.rerun, {prompt: row for row, prompt in enumerate(kept)}
        both = [
            (place[prompt], text.text)
            for prompt, text in zip(again.prompts, again.completions, strict=True)
            if prompt in place and not text.is_cut_in_thought
        ]
        if both:
            rows, texts = zip(*both, strict=True)
            details["ceiling"] = float(_cosine(first[list(rows)], _unit(embed(texts))).mean())
    mean = replace(bootstrap_mean(alike.numpy(), seed=pair.seed), null=float(shuffled.mean()))
    to_prompt = (_cosine(first, asked), _cosine(second, asked))
    return [
        Row(
            key="coherence",
            label="similarity to the original",
            unit="similarity",
            edited=mean,
            details=details,
        ),
        mean_row(
            "coherence_prompt",
            "similarity to the prompt",
            "similarity",
            *to_prompt,
            seed=pair.seed,
        ),
    ]


def _any_is_cut(*said: Completion) -> bool:
    return any(each.is_cut_in_thought for each in said)


def _unit(vectors: Float[Tensor, "text dimension"]) -> Float64[Tensor, "text dimension"]:
    return torch.nn.functional.normalize(vectors.double().cpu(), dim=-1)


def _cosine(
    first: Float64[Tensor, "text dimension"], second: Float64[Tensor, "text dimension"]
) -> Float64[Tensor, " text"]:
    return (first * second).sum(dim=-1)


def categories(pair: Pair) -> tuple[Category, ...]:
    """Return the paired outcomes of each class as a whole (``all``) and of its categories."""
    found: list[Category] = []
    for name in CLASSES:
        before: Answers | None = getattr(pair.original, name)
        after: Answers | None = getattr(pair.edited, name)
        if before is None or after is None:
            continue
        everything = list(range(len(before.ids)))
        found.append(_category(name, "all", before, after, everything))
        for category in dict.fromkeys(c for c in before.categories if c is not None):
            rows = [index for index in everything if before.categories[index] == category]
            found.append(_category(name, category, before, after, rows))
    return tuple(found)


def _category(
    prompts: PromptSet, name: str, before: Answers, after: Answers, rows: list[int]
) -> Category:
    pairs = [(before.outcomes[index], after.outcomes[index]) for index in rows]
    turned = tuple(
        Turned(before=first, after=second, count=pairs.count((first, second)))
        for first in OUTCOMES
        for second in OUTCOMES
        if (first, second) in pairs
    )
    return Category(prompts=prompts, category=name, n=len(rows), turned=turned)


def prompt_outcomes(pair: Pair) -> tuple[PromptOutcomes, ...]:
    """Return what became of each prompt of the classes that both models were asked."""
    found: list[PromptOutcomes] = []
    for name in CLASSES:
        before: Answers | None = getattr(pair.original, name)
        after: Answers | None = getattr(pair.edited, name)
        if before is not None and after is not None:
            found.append(
                PromptOutcomes(
                    prompts=name,
                    ids_sha256=digest(list(before.ids)),
                    original=before.outcomes,
                    edited=after.outcomes,
                )
            )
    return tuple(found)


def documents(pair: Pair) -> tuple[DocumentChange, ...]:
    """Return the change of each held-out document."""
    before, after = pair.original.heldout, pair.edited.heldout
    changes = ((after.nll - before.nll) / before.tokens).tolist()
    columns = zip(before.ids, before.genres, before.tokens.tolist(), changes, strict=True)
    return tuple(
        DocumentChange(id=name, genre=genre, tokens=tokens, change=change)
        for name, genre, tokens, change in columns
    )
