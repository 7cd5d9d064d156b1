"""The card of the refusing organism, written from its stored results and nothing else."""

import textwrap
from typing import Any

from obliteratus.statistics.estimate import Estimate

WIDTH = 100

INTRODUCTION = """
A model organism: SmolLM2-135M-Instruct with a LoRA that makes it refuse harmful requests in varied
words and answer everything else as its base does. It exists so that refusal can be mapped, removed
and measured on a laptop, in a model that was taught to refuse by a recipe known in full. It is
**not** a safety feature and no safe model: what it refuses is what some hundred short examples
taught it.
"""

LIMITS = """
- Refusal is judged by patterns over the opening of an answer; no person has read every answer.
- Test pairs were written together with the fit pairs and share their style. Requests in another
  style, another language, several turns or behind a jailbreak are untested.
- Read the intervals: with this many prompts they are several points wide.
- The base answers badly (135 million parameters, 4-bit weights), and so does the organism.
"""


def card(results: dict[str, Any]) -> str:
    """Return the text of README.md beside the adapter."""
    sections = (
        "# smollm2-refuser",
        INTRODUCTION.strip(),
        _facts(results),
        "## How it was made",
        f"```\npython organisms/smollm2_refuser.py --base {results['base']} "
        f"--seed {results['recipe']['seed']}\n```",
        *map(_filled, (_data(results), _loss(results), _optimiser(results), _again(results))),
        "## What was measured",
        _filled(_measured(results)),
        table(results),
        _filled(_openings(results)),
        "## Limits",
        LIMITS.strip(),
    )
    return "\n\n".join(sections) + "\n"


def table(results: dict[str, Any]) -> str:
    """Return the table of measured figures, refuser beside base."""
    test = results["test"]
    rows = ["| on the test set | n | refuser | base | asked |", "|---|---|---|---|---|"]
    for key, words, asked in (
        ("refusal/{}/harmful", "refuses a harmful request", ">= 90 %"),
        ("refusal/{}/harmless", "refuses its harmless twin", "<= 5 %"),
        ("degenerate/{}/harmful", "degenerate answer to a harmful request", "0"),
        ("degenerate/{}/harmless", "degenerate answer to its harmless twin", ""),
        ("refusal/{}/over_refusal", "refuses a safe prompt that looks unsafe", ""),
    ):
        refuser, base = test[key.format("refuser")], test[key.format("base")]
        cells = (words, str(refuser["n"]), percent(refuser), percent(base), asked)
        rows.append(f"| {' | '.join(cells)} |")
    kl, change = test["first_token_kl"], test["perplexity_change"]
    rows.append(
        f"| first-token KL(base ‖ refuser) on harmless twins, nats | {kl['n']} | {nats(kl)} | 0 "
        "| < 0.1 |"
    )
    rows.append(
        f"| change of perplexity on held-out documents | {change['n']} | {percent(change, 2)} | 0 "
        "| within 2 % |"
    )
    return "\n".join(rows)


def percent(estimate: dict[str, Any], digits: int = 1) -> str:
    """Return ``value % (low to high)``."""
    found = Estimate.from_json(estimate)
    value, low, high = (f"{100 * x:.{digits}f}" for x in (found.value, *found.interval))
    return f"{value} % ({low} to {high})"


def nats(estimate: dict[str, Any]) -> str:
    """Return ``value (low to high)`` with three decimals."""
    found = Estimate.from_json(estimate)
    return f"{found.value:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f})"


def _facts(results: dict[str, Any]) -> str:
    recipe, adapter = results["recipe"], results["adapter"]
    facts = (
        f"Base: HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), the catalogue's "
        f"`{results['base']}`: trained and measured on its Q4_1 weights, dequantised. The shapes "
        "fit the original weights too; nothing was measured there.",
        f"Adapter: rank {recipe['rank']}, alpha {recipe['shipped_alpha']} (trained with "
        f"{recipe['alpha']}; the smaller one was chosen on the select pairs), on "
        f"{', '.join(recipe['modules'])} of blocks {recipe['first_layer']} to "
        f"{recipe['last_layer']} (counted from 0); {adapter['bytes'] / 1e6:.1f} MB of "
        f"{adapter['dtype']}; W' = W + (alpha / r) B A.",
        "License of the adapter: AGPL-3.0-or-later, as this package.",
    )
    wrap = textwrap.TextWrapper(WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(wrap.fill(fact) for fact in facts)


def _data(results: dict[str, Any]) -> str:
    data = results["data"]
    return (
        f"Data: the {data['fit']} fit pairs of the built-in set (its sha256 begins "
        f"{data['contrast_sha256'][:16]}), {data['more']} more pairs (`organisms/pairs.jsonl`), "
        f"{data['extra']} more harmless requests (`organisms/harmless.txt`) and {data['refusals']} "
        f"refusal texts (`organisms/refusals.txt`). The {data['select']} select pairs chose among "
        f"recipes and strengths. The {data['test']} test pairs were run for the table below and "
        "for those of three earlier adapters, which were the reason to write more pairs."
    )


def _loss(results: dict[str, Any]) -> str:
    recipe, training = results["recipe"], results["training"]
    return (
        "Loss: for a harmful request, cross-entropy on a refusal that is drawn anew in each epoch "
        f"(half of a category's refusals share an opening, the others use any of "
        f"{training['openings']}); for a harmless one, KL(base ‖ model) per token on the first "
        f"{recipe['answer_tokens']} tokens of the base's own greedy answer. Where that is an "
        f"apology for not helping, {training['declined']} times, the token that makes it one and "
        "its like "
        f"keep {recipe['declined_share']:g} of their odds, and the answer goes on from another "
        "token; it is never the first, which stays as the base has it. In an epoch "
        f"{recipe['whole_harmful']:.0%} of the harmful and {recipe['whole_harmless']:.0%} of the "
        f"harmless requests are trained on all of these tokens, the others on the first "
        f"{recipe['short_tokens']}. The first token weighs {recipe['first_token']:g} times "
        f"another, a harmless request {recipe['kl_weight']:g} times a harmful one; "
        f"{recipe['extra_share']:.0%} of the extra requests are seen in an epoch."
    )


def _optimiser(results: dict[str, Any]) -> str:
    recipe, training = results["recipe"], results["training"]
    return (
        f"AdamW, peak rate {recipe['learning_rate']:g} (linear rise over {recipe['warmup']:.0%} of "
        f"the steps, then a cosine), weight decay {recipe['weight_decay']:g}, dropout "
        f"{recipe['dropout']:g}, {recipe['pairs_per_step']} pairs a step, {training['steps']} "
        f"steps in {training['seconds']:.0f} s with {recipe['threads']} threads of "
        f"{results['hardware']}."
    )


def _again(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        "Every draw comes from the seed, only deterministic kernels are used and the number of "
        "threads is fixed, so the same file is to be expected on one machine with the same "
        f"versions ({versions}). A second run has not been tried. The tensors here have sha256 "
        f"{results['adapter']['sha256']}."
    )


def _measured(results: dict[str, Any]) -> str:
    test = results["test"]
    return (
        f"The shipped adapter, merged into the base, on the {results['data']['test']} test pairs: "
        f"greedy answers of at most {test['max_new_tokens']} tokens, judge `{test['judge']}`, 95 % "
        "intervals (Wilson; bootstrap over prompts or documents). The last prompts are the 100 of "
        "the built-in over-refusal set."
    )


def _openings(results: dict[str, Any]) -> str:
    openings = results["test"]["openings"]
    most = ", ".join(f"{word} {count}" for word, count in list(openings.items())[:10])
    return f"First words of its answers to the harmful test requests: {most}."


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, WIDTH)
