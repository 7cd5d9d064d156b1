"""What an edit costs in skill: word problems and multiple choice, both models, paired.

    python benchmarks/capability.py qwen2.5-coder-0.5b out/qwen

The items are generated (``obliteratus.measure.word_problems``, ``multiple_choice``), so nothing is
downloaded. An edited model is no worse where the interval of the difference reaches 0.
"""

import argparse
import time

from obliteratus.measure.generation import generate
from obliteratus.measure.multiple_choice import chosen, multiple_choice
from obliteratus.measure.word_problems import is_right, word_problems
from obliteratus.models.chat import encode
from obliteratus.models.summon import summon
from obliteratus.statistics.paired import mcnemar
from obliteratus.statistics.proportion import wilson


def main() -> None:
    """Ask both models and compare them item by item."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original")
    parser.add_argument("edited")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=192)
    arguments = parser.parse_args()
    results: dict[str, list[list[bool]]] = {"multiple choice": [], "word problems": []}
    for name in (arguments.original, arguments.edited):
        start = time.perf_counter()
        model = summon(name)
        questions = multiple_choice()
        choices = chosen(model, questions)
        results["multiple choice"].append(
            [each.answer == choice for each, choice in zip(questions, choices, strict=True)]
        )
        problems = word_problems(arguments.problems)
        answers = generate(
            model,
            encode(model, [each.question for each in problems]),
            max_new_tokens=arguments.new_tokens,
            task=name,
        )
        results["word problems"].append(
            [is_right(each, said.text) for each, said in zip(problems, answers, strict=True)]
        )
        print(f"{name}: {time.perf_counter() - start:.0f} s")
        del model
    for task, (before, after) in results.items():
        rates = [wilson(sum(each), len(each)) for each in (before, after)]
        test = mcnemar(before, after)
        low, high = test.effect.interval
        print(
            f"{task:<16} n = {len(before)}: {rates[0].value:.1%} -> {rates[1].value:.1%}, "
            f"difference {test.effect.value:+.1%} [{low:+.1%}, {high:+.1%}], "
            f"exact McNemar p = {test.p_value:.2g}"
        )


if __name__ == "__main__":
    main()
