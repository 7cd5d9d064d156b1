"""Who is on the front, who is beaten, and who cannot be told apart."""

from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.front import Contender, are_tied, beats, ranks


def contender(name: str, first: float, second: float, width: float = 0.01) -> Contender:
    def about(value: float) -> Estimate:
        return Estimate(value, (value - width, value + width), n=9)

    return Contender(name, about(first), about(second))


def test_surely_lower_in_one_and_not_higher_in_the_other_beats() -> None:
    assert beats(contender("a", 0.1, 0.2), contender("b", 0.2, 0.2))
    assert not beats(contender("b", 0.2, 0.2), contender("a", 0.1, 0.2))


def test_a_trade_is_neither_a_tie_nor_a_win() -> None:
    one, other = contender("a", 0.1, 0.3), contender("b", 0.2, 0.2)
    assert not beats(one, other)
    assert not beats(other, one)
    assert not are_tied(one, other)


def test_where_both_intervals_meet_there_is_a_tie() -> None:
    one, other = contender("a", 0.1, 0.1, 0.2), contender("b", 0.2, 0.2, 0.2)
    assert are_tied(one, other)
    assert not beats(one, other)
    stands = ranks([one, other, contender("c", 0.9, 0.9)])
    assert stands["a"].tied_with == ("b",)
    assert stands["a"].beaten_by == ()
    assert stands["c"].beaten_by == ("a", "b")
    assert stands["c"].tied_with == ()


def test_intervals_that_touch_are_a_tie() -> None:
    low, high = Estimate(0.1, (0.0, 0.2), n=9), Estimate(0.3, (0.2, 0.4), n=9)
    assert are_tied(Contender("a", low, low), Contender("b", high, high))


def test_one_alone_is_on_the_front() -> None:
    assert ranks([contender("a", 1.0, 9.0)])["a"].beaten_by == ()
