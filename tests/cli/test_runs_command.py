"""Two edits from the command line: what is recorded, shown and ranked is what their reports say."""

import contextlib
import csv
import io
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from obliteratus.cli.main import main
from obliteratus.community.book import opened_book
from obliteratus.community.contribute import package
from obliteratus.community.received import checked
from obliteratus.errors import MeasurementError
from obliteratus.release.publication import publication

METHODS = ("basic", "advanced")


def answer(*arguments: str) -> dict:
    """Run the program with --json and return its result."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*arguments, "--json"]) == 0
    return json.loads(printed.getvalue().splitlines()[-1])


def shown(*arguments: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(list(arguments)) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def book(tmp_path_factory, quick):
    """A book with a run of each method, and the folders that they wrote."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBLITERATUS_CACHE", str(root / "cache"))
        patch.setenv("OBLITERATUS_RUNS", str(root / "runs.sqlite"))
        for method in METHODS:
            answer("obliterate", *quick, "-m", method, "-o", str(root / method))
    return root


@pytest.fixture
def recorded(book, monkeypatch):
    monkeypatch.setenv("OBLITERATUS_CACHE", str(book / "cache"))
    monkeypatch.setenv("OBLITERATUS_RUNS", str(book / "runs.sqlite"))
    return book


def report(book: Path, method: str) -> dict:
    return json.loads((book / method / "obliteratus" / "report.json").read_text())


def row(rows, key):
    return next(each for each in rows if each["key"] == key)


def test_the_list_names_every_run_and_the_newest_first(recorded) -> None:
    runs = answer("runs")["runs"]
    assert [run["record"]["method"] for run in runs] == list(reversed(METHODS))
    assert {run["state"] for run in runs} == {"finished"}
    assert [Path(run["local"]["folder"]).name for run in runs] == list(reversed(METHODS))
    assert answer("runs", "list")["runs"] == runs
    assert [r["id"] for r in answer("runs", "--method", "basic")["runs"]] == [runs[1]["id"]]
    assert answer("runs", "list", "--model", "nothing like it")["runs"] == []
    text = shown("runs")
    assert all(run["id"][:8] in text for run in runs)


def test_every_number_of_a_record_is_that_of_its_report(recorded) -> None:
    for run in answer("runs")["runs"]:
        found, told = run["record"]["results"], report(recorded, run["record"]["method"])
        assert found["verdict"] == told["verdict"]
        for metric, row in zip(found["metrics"], told["rows"], strict=True):
            for name in ("key", "unit", "original", "edited", "change", "p_value", "adjusted_p"):
                assert metric[name] == row[name], row["key"]
        assert found["divergences"] == told["divergences"]
        assert found["protocol"]["prompts"] == told["prompts"]
        assert found["original"]["weights"] == told["original"]["weights"]
        assert run["record"]["seconds"]["total"] > run["record"]["seconds"]["verify"] > 0
        assert run["record"]["hardware"]["device"] == "cpu"


def test_no_path_and_no_host_is_in_a_record(recorded, refuser) -> None:
    for run in answer("runs")["runs"]:
        text = json.dumps(run["record"])
        assert str(refuser) not in text
        assert str(recorded) not in text
        assert os.uname().nodename not in text
        assert str(Path.home()) not in text
        assert "Tell me about" not in text


def test_one_run_is_shown_by_the_beginning_of_its_id(recorded, capsys) -> None:
    run = answer("runs")["runs"][0]
    assert answer("runs", "show", run["id"][:6])["record"] == run["record"]
    text = shown("runs", "show", run["id"][:6])
    assert run["id"] in text
    assert "distill.select_prompts" in text
    assert "edit.affine_offset" not in text  # a default
    assert "refused, harmful" in text
    assert "verify" in text
    assert main(["runs", "show", "zz"]) == 2
    assert "no run called 'zz'. `obliteratus runs` lists them." in capsys.readouterr().err


def test_two_runs_are_compared_prompt_by_prompt(recorded) -> None:
    second, first = (run["id"] for run in answer("runs")["runs"])
    found = answer("runs", "compare", first, second)
    assert found["differ_in"] == []
    before, after = (report(recorded, method)["rows"] for method in METHODS)
    for key in ("refusal_harmful", "kl_first"):
        compared = row(found["rows"], key)
        assert compared["is_paired"]
        assert compared["first"]["value"] == row(before, key)["edited"]["value"]
        assert compared["second"]["value"] == row(after, key)["edited"]["value"]
        assert compared["difference"]["value"] == pytest.approx(
            compared["second"]["value"] - compared["first"]["value"]
        )
    perplexity = row(found["rows"], "perplexity_heldout")
    assert perplexity["difference"]["value"] == pytest.approx(
        perplexity["second"]["value"] / perplexity["first"]["value"]
    )
    text = shown("runs", "compare", first, second)
    assert "paired" in text


def test_a_run_is_not_compared_with_itself_or_with_nothing(recorded, capsys) -> None:
    one = answer("runs")["runs"][0]["id"]
    assert main(["runs", "compare", one, one[:8]]) == 2
    assert "are one run" in capsys.readouterr().err


def test_runs_are_exported(recorded, tmp_path, capsys) -> None:
    for format_ in ("parquet", "csv", "json", "latex"):
        answer("runs", "export", "--to", format_, "-o", str(tmp_path / format_))
    rows = list(csv.DictReader((tmp_path / "csv").read_text().splitlines()))
    for method in METHODS:
        told = row(report(recorded, method)["rows"], "kl_first")["edited"]
        (found,) = [r for r in rows if r["method"] == method and r["metric"] == "kl_first"]
        assert float(found["edited"]) == pytest.approx(told["value"], rel=1e-12)
    assert (tmp_path / "latex").read_text().count(r"\\") == 3
    assert main(["runs", "export", "--to", "word"]) == 2
    assert "no format called 'word'" in capsys.readouterr().err
    assert main(["runs", "export", "--to", "csv", "--method", "none"]) == 2
    assert "nothing to export" in capsys.readouterr().err


def test_the_leaderboard_says_what_the_reports_say(recorded) -> None:
    (board,) = answer("community", "leaderboard")["boards"]
    assert {row["method"] for row in board["rows"]} == set(METHODS)
    for row_ in board["rows"]:
        told = report(recorded, row_["method"])["rows"]
        for name, key in (("refusal", "refusal_harmful"), ("divergence", "kl_first")):
            edited = row(told, key)["edited"]
            assert row_[name] == edited["value"]
            assert [row_[f"{name}_low"], row_[f"{name}_high"]] == edited["interval"]
        assert row_["n"] == row(told, "refusal_harmful")["edited"]["n"]
    assert any(row["is_on_front"] for row in board["rows"])
    text = shown("community", "leaderboard")
    assert "front" in text
    assert answer("community", "leaderboard", "--device", "cuda")["boards"] == []
    assert "No recorded run fits" in shown("community", "leaderboard", "--dtype", "float16")


def test_a_verified_folder_is_a_row_of_its_method_and_the_same_edit(
    recorded, quick, tmp_path, monkeypatch
) -> None:
    original, *prompts = quick[:3]
    flags = [*prompts, *(flag for flag in quick if "verify." in flag)]
    before = answer("community", "leaderboard")["boards"][0]["rows"]
    answer("verify", original, str(recorded / "basic"), *flags)
    newest = answer("runs")["runs"][0]
    assert (newest["record"]["kind"], newest["record"]["method"]) == ("verify", "basic")
    after = answer("community", "leaderboard")["boards"][0]["rows"]
    assert len(after) == len(before)
    (row_,) = [each for each in after if each["method"] == "basic"]
    assert (row_["id"], row_["times"]) == (newest["id"], 2)
    answer("runs", "delete", newest["id"])
    assert answer("runs")["runs"][0]["id"] != newest["id"]


def test_a_run_as_it_is_can_be_contributed_and_passes_every_check(recorded, refuser) -> None:
    with opened_book() as book:
        made = [package(run) for run in book.runs()]
    files = {path: data for each in made for path, data in each.files.items()}
    rows, refused = checked(files)
    assert refused == ()
    assert [row.flags for row in rows] == [()] * len(METHODS)
    sent = b"".join(files.values()).decode()
    assert str(refuser) not in sent
    assert str(recorded) not in sent
    assert all(each.contribution.directions is not None for each in made)


def test_what_a_run_wrote_can_be_published_and_undone(recorded, refuser, tmp_path) -> None:
    for method in METHODS:
        folder = recorded / method
        what = publication(folder)
        sent = {item.path for item in what.items}
        assert {"README.md", "config.json", "obliteratus/undo.safetensors"} <= sent
        assert {"obliteratus/report.json", "obliteratus/run.json"} <= set(what.left_out)
        assert "obliteratus release undo" in (folder / "README.md").read_text()
    answer("release", "undo", str(recorded / "advanced"), "-o", str(tmp_path / "back"))
    before, after = (load_file(each / "model.safetensors") for each in (refuser, tmp_path / "back"))
    edited = load_file(recorded / "advanced" / "model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], edited[name])]
    assert len(changed) > 3
    for name in changed:
        gap = (after[name] - before[name]).abs().max() / before[name].abs().max()
        assert gap < 16 * torch.finfo(before[name].dtype).eps, name


def test_a_failed_run_is_recorded_with_its_error(recorded, quick, monkeypatch, capsys) -> None:
    def broken(*_arguments, **_options):
        raise MeasurementError("the logits are NaN")

    monkeypatch.setattr("obliteratus.pipeline.run.compare", broken)
    assert main(["obliterate", *quick, "-m", "basic", "-o", str(recorded / "failed")]) == 1
    capsys.readouterr()
    newest = answer("runs")["runs"][0]
    assert (newest["state"], newest["record"]["error"]) == ("failed", "MeasurementError")
    assert newest["local"]["sentence"] == "the logits are NaN"
    assert newest["record"]["seconds"]["probe"] > 0
    assert "failed" in shown("runs")
    assert "MeasurementError: the logits are NaN" in shown("runs", "show", newest["id"])
    answer("runs", "delete", newest["id"])


def test_a_mistyped_request_leaves_no_trace(recorded, capsys) -> None:
    before = answer("runs")["runs"]
    assert main(["obliterate", "no-such-model", "-o", str(recorded / "x")]) == 2
    capsys.readouterr()
    assert answer("runs")["runs"] == before


def test_without_a_book_that_is_said(monkeypatch, capsys) -> None:
    monkeypatch.setenv("OBLITERATUS_RUNS", "off")
    assert main(["runs"]) == 2
    assert "OBLITERATUS_RUNS is off" in capsys.readouterr().err


def test_an_empty_book_is_said_to_be_empty(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OBLITERATUS_RUNS", str(tmp_path / "runs.sqlite"))
    assert "No run is recorded" in shown("runs")
    assert "No recorded run fits" in shown("community", "leaderboard")


def test_the_group_has_its_own_help(capsys) -> None:
    assert main(["runs", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("list", "show", "compare", "export", "delete"))
