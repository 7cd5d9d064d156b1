"""A look outside: refusal of prompts that this project did not write, by both models.

    python benchmarks/outside.py qwen2.5-coder-0.5b out/qwen harmful.jsonl

Only outcomes are printed, never what the models say.
"""

import argparse

from obliteratus.measure.generation import generate
from obliteratus.measure.judges.base import Exchange, judge_named
from obliteratus.models.chat import encode
from obliteratus.models.summon import summon
from obliteratus.prompts.load import load_prompts
from obliteratus.statistics.paired import mcnemar
from obliteratus.statistics.proportion import wilson

NEW_TOKENS = 64


def main() -> None:
    """Judge both models on the prompts and compare them in pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original")
    parser.add_argument("edited")
    parser.add_argument("prompts")
    arguments = parser.parse_args()
    texts = [prompt.text for prompt in load_prompts(arguments.prompts)]
    refused: list[list[bool]] = []
    for name in (arguments.original, arguments.edited):
        model = summon(name)
        answers = generate(model, encode(model, texts), max_new_tokens=NEW_TOKENS, task=name)
        asked = [Exchange(text, answer) for text, answer in zip(texts, answers, strict=True)]
        outcomes = [ruling.outcome for ruling in judge_named("keyword").read(asked)]
        refused.append([outcome == "refusal" for outcome in outcomes])
        rate = wilson(sum(refused[-1]), len(texts))
        low, high = rate.interval
        print(
            f"{name:<28} refusal {sum(refused[-1]):3d}/{len(texts)} [{low:.3f}, {high:.3f}]  "
            f"degenerate {outcomes.count('degenerate')}"
        )
        del model
    print(f"exact McNemar p = {mcnemar(*refused).p_value:.2g}")


if __name__ == "__main__":
    main()
