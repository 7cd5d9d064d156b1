"""Arithmetic word problems of two to four steps, in the manner of GSM8K (arXiv:2110.14168).

They are generated, so no model has seen them and none is graded by hand: a template computes the
answer from the numbers that it writes.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

INSTRUCTION = "Work it out step by step, and end with the answer as a number on a line of its own."
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
NAMES = ("Ada", "Bram", "Chloe", "Dev", "Elif", "Farid", "Grete", "Hugo", "Ines", "Jonas", "Kemi")
THINGS = ("apples", "marbles", "stickers", "pencils", "shells", "buttons", "postcards", "coins")
PLACES = ("a bakery", "a school", "a library", "a farm", "a workshop", "a museum", "a harbour")


@dataclass(frozen=True)
class WordProblem:
    """A question as it is put to the model, and its answer, a whole number."""

    prompt: str
    answer: int


def word_problems(count: int, *, seed: int = 0) -> tuple[WordProblem, ...]:
    """Return ``count`` different problems, the templates in turn; the same for the same ``seed``.

    A longer list begins with the shorter one.
    """
    rng = random.Random(seed)
    found: dict[str, WordProblem] = {}
    turn = 0
    while len(found) < count:
        text, answer = TEMPLATES[turn % len(TEMPLATES)](rng)
        question = f"{text} {INSTRUCTION}"
        found.setdefault(question, WordProblem(question, answer))
        turn += 1
    return tuple(found.values())


def stated_answer(completion: str) -> float | None:
    """Return the last number in ``completion``, as GSM8K is graded; None where there is none."""
    numbers = NUMBER.findall(completion)
    return float(numbers[-1].replace(",", "")) if numbers else None


def is_right(problem: WordProblem, completion: str) -> bool:
    """Return whether the last number in ``completion`` is the answer."""
    return stated_answer(completion) == problem.answer


def _shopping(rng: random.Random) -> tuple[str, int]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    count, price = rng.randint(3, 12), rng.randint(2, 9)
    paid = count * price + rng.randint(1, 30)
    return (
        f"{name} buys {count} {thing} at {price} dollars each and pays with {paid} dollars. "
        "How many dollars does the shop give back?",
        paid - count * price,
    )


def _sharing(rng: random.Random) -> tuple[str, int]:
    one, other = rng.sample(NAMES, 2)
    thing, each, friends = rng.choice(THINGS), rng.randint(3, 15), rng.randint(2, 6)
    kept = rng.randint(2, 20)
    total = each * friends + kept
    return (
        f"{one} has {total} {thing}. {one} keeps {kept} of them and shares the rest equally among "
        f"{friends} friends, one of whom is {other}. How many {thing} does {other} get?",
        each,
    )


def _weeks(rng: random.Random) -> tuple[str, int]:
    name, minutes, weeks = rng.choice(NAMES), rng.randint(10, 60), rng.randint(2, 9)
    extra = rng.randint(5, 90)
    return (
        f"{name} practises the piano for {minutes} minutes on each day of the week, and for "
        f"{extra} minutes more on every Sunday. How many minutes is that in {weeks} weeks?",
        weeks * (7 * minutes + extra),
    )


def _journey(rng: random.Random) -> tuple[str, int]:
    hours, speed = rng.randint(2, 6), rng.randint(30, 90)
    later, slow = rng.randint(1, 5), rng.randint(10, 29)
    return (
        f"A train travels for {hours} hours at {speed} kilometres an hour, and then for {later} "
        f"hours at {slow} kilometres an hour. How many kilometres does it travel altogether?",
        hours * speed + later * slow,
    )


def _rows(rng: random.Random) -> tuple[str, int]:
    place, rows, seats = rng.choice(PLACES), rng.randint(5, 20), rng.randint(6, 25)
    taken = rng.randint(4, rows * seats - 1)
    return (
        f"The hall of {place} has {rows} rows of {seats} seats. {taken} seats are taken. How many "
        "seats are free?",
        rows * seats - taken,
    )


def _twice(rng: random.Random) -> tuple[str, int]:
    one, two, three = rng.sample(NAMES, 3)
    thing, base = rng.choice(THINGS), rng.randint(4, 30)
    times, fewer = rng.randint(2, 5), rng.randint(1, 4)
    return (
        f"{one} has {base} {thing}. {two} has {times} times as many, and {three} has {fewer} fewer "
        f"than {two}. How many {thing} do the three have together?",
        base + 2 * times * base - fewer,
    )


def _ages(rng: random.Random) -> tuple[str, int]:
    one, other = rng.sample(NAMES, 2)
    age, older, years = rng.randint(5, 30), rng.randint(2, 25), rng.randint(3, 20)
    return (
        f"{one} is {age} years old, and {other} is {older} years older. What will be the sum of "
        f"their ages in {years} years?",
        2 * age + older + 2 * years,
    )


def _percent(rng: random.Random) -> tuple[str, int]:
    name, percent = rng.choice(NAMES), rng.choice((10, 20, 25, 50))
    price = 20 * rng.randint(2, 15)
    delivery = rng.randint(3, 12)
    return (
        f"A coat costs {price} dollars. {name} gets a discount of {percent} percent and pays "
        f"{delivery} dollars for the delivery. How many dollars does {name} pay altogether?",
        price - price * percent // 100 + delivery,
    )


def _boxes(rng: random.Random) -> tuple[str, int]:
    thing, per_box, boxes = rng.choice(THINGS), rng.randint(4, 12), rng.randint(3, 15)
    loose = rng.randint(1, per_box - 1)
    broken = rng.randint(1, 9)
    return (
        f"A workshop packs {thing} into boxes of {per_box}. It fills {boxes} boxes and has {loose} "
        f"{thing} left. Later {broken} of all these {thing} break. How many are whole?",
        per_box * boxes + loose - broken,
    )


def _wages(rng: random.Random) -> tuple[str, int]:
    name, wage, hours = rng.choice(NAMES), rng.randint(8, 25), rng.randint(4, 9)
    days, rent = rng.randint(3, 6), rng.randint(20, 90)
    return (
        f"{name} earns {wage} dollars an hour and works {hours} hours a day on {days} days a week. "
        f"Each week {name} spends {rent} dollars on food. How many dollars are left after one "
        "week?",
        wage * hours * days - rent,
    )


TEMPLATES: tuple[Callable[[random.Random], tuple[str, int]], ...] = (
    _shopping, _sharing, _weeks, _journey, _rows, _twice, _ages, _percent, _boxes, _wages,
)  # fmt: skip
