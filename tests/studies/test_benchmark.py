"""A benchmark compares methods on equal terms and calls a tie a tie."""

import json
from dataclasses import replace

import pytest

from obliteratus.cli.main import main
from obliteratus.errors import UsageError
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.interactive import interactive
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.front import beats
from obliteratus.studies.benchmark import Candidate, benchmark, picture, ranked


def candidate(method, refusal, kl, *, width=0.01, model="m"):
    estimates = {
        "refusal_harmful": Estimate(refusal, (refusal - width, refusal + width), n=9),
        "kl_first": Estimate(kl, (kl - width, kl + width), n=9),
    }
    return Candidate(model, method, estimates, 1.0)


def test_lower_in_both_beats():
    assert beats(candidate("a", 0.1, 0.1).contender, candidate("b", 0.2, 0.2).contender)


def test_neither_beats_where_one_is_traded_for_the_other():
    one, other = candidate("a", 0.1, 0.3), candidate("b", 0.2, 0.2)
    assert not beats(one.contender, other.contender)
    assert not beats(other.contender, one.contender)


def test_within_the_intervals_nothing_is_beaten():
    one, other = candidate("a", 0.1, 0.1, width=0.2), candidate("b", 0.2, 0.2, width=0.2)
    assert not beats(one.contender, other.contender)


def test_models_are_not_compared_with_each_other():
    rows = ranked([candidate("a", 0.1, 0.1), candidate("b", 0.5, 0.5, model="other")])
    assert [each.beaten_by for each in rows] == [(), ()]


def test_the_least_refusal_comes_first_and_says_who_beats_it():
    rows = ranked([candidate("c", 0.5, 0.5), candidate("a", 0.1, 0.1), candidate("b", 0.2, 0.05)])
    assert [each.method for each in rows] == ["a", "b", "c"]
    assert [each.beaten_by for each in rows] == [(), (), ("a", "b")]


def test_the_picture_has_the_intervals_of_the_table():
    found = ranked([candidate("a", 0.1, 0.2, width=0.05), candidate("b", 0.5, 0.9)])
    front, beaten = picture("m", found).panels[0].marks
    assert front.x_intervals == (found[0].estimates["kl_first"].interval,)
    assert front.y_intervals[0] == pytest.approx((5.0, 15.0))
    assert beaten.x_intervals != front.x_intervals


def test_bars_are_drawn_by_both_painters():
    shown = picture("m", ranked([candidate("a", 0.1, 0.2, width=0.05)]))
    lines = [line.get_xydata().tolist() for line in drawn(shown).axes[0].lines]
    low, high = pytest.approx([0.15, 10.0]), pytest.approx([0.25, 10.0])
    assert [low, high] in lines
    (trace,) = interactive(shown).data
    assert list(trace.error_y.array) == pytest.approx([5.0])
    bare = replace(shown.panels[0].marks[0], x_intervals=(), y_intervals=())
    without = replace(shown, panels=(replace(shown.panels[0], marks=(bare,)),))
    assert len(drawn(without).axes[0].lines) == len(lines) - 2
    assert interactive(without).data[0].error_y.array is None


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least one name"):
        benchmark([], ["basic"], tmp_path / "x")


def test_methods_on_a_tiny_model(refuser, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_CACHE", str(tmp_path / "cache"))
    sets = [f"prompts.{name}={refuser / name}.jsonl" for name in ("harmful", "harmless")]
    sets += ["distill.select_prompts=8", "distill.max_kl=5", "distill.max_depth=1"]
    sets += ["verify.max_new_tokens=20", "verify.dose=false"]
    words = [word for each in sets for word in ("--set", each)]
    folder = tmp_path / "out"
    words = ["--models", str(refuser), "-o", str(folder), *words]
    words = ["--methods", "basic,inverted,advanced", *words]
    assert main(["benchmark", *words, "--prompts", "6"]) == 0
    shown = capsys.readouterr().out
    assert "front" in shown
    assert "95 % intervals" in shown
    rows = json.loads((folder / "benchmark.json").read_text())
    reasons = {row["method"]: row["one_by_one_because"] for row in rows}
    assert set(reasons) == {"basic", "inverted", "advanced"}
    assert reasons["basic"] is reasons["inverted"] is None
    assert "norm=column" in reasons["advanced"]
    assert "Measured one by one" in shown
    assert all(row["estimates"]["kl_first"]["value"] > 0 for row in rows)
    assert list(folder.glob("pareto-*.png"))
    assert list(folder.glob("layers-*-*.png"))
