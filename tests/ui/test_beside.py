"""Two answers as HTML: what a model says is text, and every picture has its numbers."""

import math
import re

import pytest

from obliteratus.measure.beside import Token, Whose
from obliteratus.ui.beside import LEVELS, answer, key, level, trace, values

HOSTILE = "<img src=x onerror=alert(1)> {{ 7 * 7 }} ${x} & \"'\n</p>"


def token(
    index: int = 0,
    *,
    answer: Whose = "original",
    text: str = " word",
    kl: float = 0.5,
    original: float | None = 3.0,
    edited: float | None = -2.0,
) -> Token:
    return Token(answer, index, 7, text, False, kl, original, edited)


def points(html: str, name: str) -> list[tuple[float, float]]:
    found = re.search(rf'<polyline class="is-{name}" points="([^"]*)"', html)
    assert found is not None
    pairs = (pair.split(",") for pair in found[1].split())
    return [(float(x), float(y)) for x, y in pairs]


def zero(html: str) -> float:
    found = re.search(r'class="zero"[^>]* y1="([\d.]+)"', html)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize(
    "html",
    [
        answer([token(text=HOSTILE)], numbers=True),
        trace([token(text=HOSTILE)]),
        values([token(text=HOSTILE)]),
    ],
)
def test_what_a_model_says_is_no_markup(html: str) -> None:
    assert "<img" not in html
    assert not re.search(r"onerror=(?!alert\(1\)&gt;)", html)
    assert "49" not in html


def test_the_text_is_all_there() -> None:
    html = answer([token(text="A < B"), token(1, text=" & c")], numbers=False)
    assert re.sub("<[^>]*>", "", html).strip() == "A &lt; B &amp; c"


@pytest.mark.parametrize(
    ("kl", "shade"),
    [
        (0.0, 0),
        (0.009, 0),
        (0.01, 1),
        (0.099, 1),
        (0.1, 2),
        (1.0, 3),
        (4.99, 3),
        (5.0, 4),
        (70.0, 4),
    ],
)
def test_a_token_is_as_dark_as_the_models_are_apart(kl: float, shade: int) -> None:
    assert level(kl) == shade
    assert f"is-kl-{shade}" in answer([token(kl=kl)], numbers=False)
    assert f"KL {kl:.4f} nats" in answer([token(kl=kl)], numbers=False)


def test_numbers_are_written_when_they_are_asked_for() -> None:
    with_numbers = answer([token(kl=1.234), token(1, kl=0.001)], numbers=True)
    assert re.findall("<small>(.*?)</small>", with_numbers) == ["1.23", "0"]
    assert "<small>" not in answer([token(kl=1.234)], numbers=False)


def test_the_key_tells_every_shade_apart_by_its_number() -> None:
    for place in range(len(LEVELS) + 1):
        assert f"is-kl-{place}" in key()
    for edge in LEVELS:
        assert f"{edge:g}" in key()


def test_lines_are_above_zero_where_a_refusal_is_likelier() -> None:
    html = trace([token(), token(1, original=-5.0, edited=-6.0)])
    (first, second), (third, fourth) = points(html, "original"), points(html, "edited")
    assert first[1] < zero(html) < second[1] < fourth[1]
    assert third[1] > zero(html)
    assert first[0] == third[0] < second[0] == fourth[0]
    assert "original 3.0 at the first token, −5.0 at the last" in html
    assert html.count('stroke-dasharray="6 3"') == 1  # told apart without colour


def test_two_pictures_side_by_side_have_one_axis() -> None:
    tokens = [token(), token(answer="edited", original=-20.0)]
    one, other = (trace([each], tokens) for each in tokens)
    assert zero(one) == zero(other) != zero(trace(tokens[:1]))
    assert points(other, "original")[0][1] > points(one, "original")[0][1]


@pytest.mark.parametrize("odds", [math.inf, -math.inf, math.nan, 1e9])
def test_what_is_not_finite_stays_in_the_picture(odds: float) -> None:
    html = trace([token(original=odds), token(1)])
    assert all(0 <= y <= 170 for _, y in points(html, "original"))
    assert "nan" not in re.sub('aria-label="[^"]*"', "", html)


@pytest.mark.parametrize("length", [1, 5, 60, 512])
def test_every_length_fits(length: int) -> None:
    html = trace([token(index) for index in range(length)])
    assert len(points(html, "edited")) == length
    assert all(0 <= x <= 460 for x, _ in points(html, "edited"))
    assert 1 <= len(re.findall('text-anchor="middle"', html)) <= 8


def test_without_refusal_tokens_it_says_so() -> None:
    assert "No first token tells refusals" in trace([token(original=None, edited=None)])
    assert "refusal log-odds" not in answer([token(original=None, edited=None)], numbers=False)
    assert "<td>–</td>" in values([token(original=None, edited=None)])
    assert trace([]) == ""


def test_the_table_has_every_number_of_both_answers() -> None:
    html = values([token(kl=0.12345), token(0, answer="edited", kl=6.0, original=-1.5)])
    assert html.count("<table>") == 2
    assert html.count("<tr><td>1</td>") == 2
    assert "<td>0.1235</td><td>3.00</td><td>−2.00</td>" in html
    assert "<td>6.0000</td><td>−1.50</td><td>−2.00</td>" in html
    assert html.count('tabindex="0"') == 2  # a table that scrolls is reached by keys
