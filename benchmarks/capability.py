"""What an edit costs in skill: word problems and multiple choice, both models, paired.

    python benchmarks/capability.py qwen2.5-coder-0.5b out/qwen

These are the built-in tasks of ``obliteratus verify --capability``, without all else that a
verification measures. An edited model is no worse where the interval of the difference reaches 0.
"""

import argparse
import time

from obliteratus.measure.built_in_tasks import NEW_TOKENS, MultipleChoice, WordProblems
from obliteratus.measure.capability import ItemScores
from obliteratus.models.summon import summon
from obliteratus.statistics.paired import mcnemar
from obliteratus.statistics.proportion import wilson


def main() -> None:
    """Ask both models and compare them item by item."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original")
    parser.add_argument("edited")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    arguments = parser.parse_args()
    tasks = (MultipleChoice(0), WordProblems(arguments.problems, arguments.new_tokens))
    results: list[list[ItemScores]] = []
    for name in (arguments.original, arguments.edited):
        start = time.perf_counter()
        model = summon(name)
        results.append([task.score(model, None, progress=name) for task in tasks])
        print(f"{name}: {time.perf_counter() - start:.0f} s")
        del model
    for before, after in zip(*results, strict=True):
        was, now = ([score == 1 for score in each.scores] for each in (before, after))
        rates = [wilson(sum(each), len(each)) for each in (was, now)]
        test = mcnemar(was, now)
        low, high = test.effect.interval
        print(
            f"{before.task.replace('_', ' '):<16} n = {len(was)}: {rates[0].value:.1%} -> "
            f"{rates[1].value:.1%}, difference {test.effect.value:+.1%} [{low:+.1%}, {high:+.1%}], "
            f"exact McNemar p = {test.p_value:.2g}"
        )


if __name__ == "__main__":
    main()
