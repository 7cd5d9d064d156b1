"""``obliteratus study``: a study run by a real worker, stopped, resumed, shown and asked."""

import json
from pathlib import Path

import duckdb
import jsonschema
import pytest
import yaml

from obliteratus.cli.main import main
from obliteratus.community.book import RunBook
from obliteratus.studies.ledger import Ledger
from obliteratus.studies.presets import presets

TEXT = "The river runs past the old mill and on to the sea, and nobody minds the rain.\n\n"


@pytest.fixture(scope="module")
def study_file(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "text.txt").write_text(TEXT + TEXT.replace("river", "road") + TEXT.upper())
    study = {
        "name": "tiny",
        "question": "Which layers of the tiny refuser carry refusal?",
        "models": [str(refuser)],
        "methods": ["basic"],
        "prompts": 8,
        "metrics": ["log_odds_harmful", "perplexity_heldout"],
        "ablations": [{"part": "layer", "by": "mean"}],
        "common": {
            "prompts": {n: str(refuser / f"{n}.jsonl") for n in ("harmful", "harmless")},
            "distill": {"select_prompts": 8, "max_kl": 5.0, "max_depth": 1.0, "max_strength": 1.0},
            "verify": {"text": str(folder / "text.txt")},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.fixture(scope="module")
def done(
    study_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str | float | None]]:
    """Run the study once; return its folder and when each unit was finished."""
    cache = tmp_path_factory.mktemp("cache")
    folder = study_file.parent / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBLITERATUS_CACHE", str(cache))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OBLITERATUS_RUNS", str(study_file.parent / "runs.sqlite"))
        assert main(["study", "run", str(study_file), "-o", str(folder)]) == 0
    return folder, ended(folder)


def ended(folder: Path) -> dict[str, str | float | None]:
    with Ledger(folder) as ledger:
        return {unit.entry.spec["name"]: unit.ended for unit in ledger.units()}


def test_every_unit_is_done_and_exported(done) -> None:
    folder, times = done
    assert list(times) == ["basic seed 0", "L0 mean", "L1 mean", "L2 mean"]
    assert all(times.values())
    assert {entry.name for entry in folder.iterdir()} >= {
        "ledger.sqlite",
        "results.parquet",
        "study.json",
    }
    query = f"SELECT count(DISTINCT unit), count(*) FROM '{folder / 'results.parquet'}'"
    assert duckdb.sql(query).fetchall() == [(4, 8)]


def test_a_study_is_one_run_and_its_units_are_none(done) -> None:
    with RunBook(done[0].parent / "runs.sqlite") as book:
        (run,) = book.runs()
    assert (run.record.kind, run.standing) == ("study", "finished")
    assert run.record.numbers == {"units": 4, "finished": 4, "failed": 0}


def test_the_same_command_repeats_nothing(done, study_file: Path, capsys) -> None:
    folder, before = done
    assert main(["study", "run", str(study_file), "-o", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "4 are finished already" in out
    assert "4 of 4 units finished" in out
    assert ended(folder) == before


def test_another_study_in_its_folder_is_refused(done, study_file: Path, capsys) -> None:
    folder, before = done
    words = ["study", "run", str(study_file), "-o", str(folder), "--set", "verify.text=null"]
    assert main(words) == 2
    assert "holds another study: 4 of its 4 units" in capsys.readouterr().err
    assert ended(folder) == before


def test_a_folder_of_something_else_is_left_alone(study_file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert main(["study", "run", str(study_file), "-o", str(tmp_path)]) == 1
    assert "holds something else than a study" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_unit_is_shown_kept_and_told_by_the_exit_code(
    done, study_file: Path, tmp_path: Path, capsys
) -> None:
    with Ledger(done[0]) as ledger:
        facts, known = ledger.facts(), ledger.units()
    with Ledger(tmp_path, create=True) as ledger:
        ledger.add([unit.entry for unit in known], facts)
        for unit in known:
            claim = ledger.claim("test")
            assert claim is not None
            if unit.place:
                ledger.finish(claim, unit.result or {}, 1.0)
            else:
                ledger.fail(claim, "no direction was found", 1.0)
    assert main(["study", "run", str(study_file), "-o", str(tmp_path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "3 of 4 units finished, 1 failed" in out
    assert "no direction was found" in out
    assert "L0 mean" in out


def test_show_says_what_edits_and_ablations_did(done, capsys) -> None:
    assert main(["study", "show", str(done[0])]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Which layers of the tiny refuser carry refusal?" in out
    assert "4 of 4 units finished" in out
    assert "edits" in out
    assert "taken out one at a time" in out
    assert "L0 mean" in out
    assert "×" in out


def test_show_answers_sql_also_as_json(done, capsys) -> None:
    sql = "SELECT name, change FROM results WHERE metric = 'log_odds_harmful' ORDER BY change"
    assert main(["study", "show", str(done[0]), "--sql", sql, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (result,) = [line for line in lines if line["event"] == "result"]
    assert len(result["rows"]) == 4
    assert result["rows"][0]["change"] < 0
    assert main(["study", "show", str(done[0]), "--sql", "SELECT nothing FROM results"]) == 2
    assert "--sql: " in capsys.readouterr().err


def test_watch_ends_when_all_is_done(done, capsys) -> None:
    assert main(["study", "watch", str(done[0]), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    progress = [line for line in lines if line["event"] == "progress"]
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["left"]) == (4, 4, 0.0)


def test_watch_says_when_nobody_works(done, tmp_path: Path, monkeypatch, capsys) -> None:
    with Ledger(done[0]) as ledger:
        facts, entries = ledger.facts(), [unit.entry for unit in ledger.units()]
    with Ledger(tmp_path, create=True) as ledger:
        ledger.add(entries, facts)
    monkeypatch.setattr("obliteratus.cli.studies.SECONDS_BETWEEN_LOOKS", 0.01)
    assert main(["study", "watch", str(tmp_path)]) == 0
    assert "nobody works on it" in capsys.readouterr().out


def test_show_and_watch_of_no_study_are_errors(tmp_path: Path, capsys) -> None:
    for command in ("show", "watch"):
        assert main(["study", command, str(tmp_path)]) == 1
        assert "there is no study in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quik", "m"], "no preset called 'quik'. Did you mean 'quick'"),
        (["quick"], "The study 'quick' names none"),
        (["nowhere.yaml"], "there is no study file nowhere.yaml"),
        (["quick", "m", "--engine", "locl"], "no engine called 'locl'. Did you mean 'local'"),
        (["quick", "m", "--set", "edit.strenght=1"], "Did you mean 'edit.strength'"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_nothing_on_disk(
    words: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "run", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_presets_are_listed_and_printed(capsys) -> None:
    assert main(["study", "presets"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for preset in presets():
        assert preset.name in out
    assert main(["study", "presets", "quick"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["prompts"] == 25
    assert main(["study", "presets", "quik"]) == 2


def test_the_schema_is_one_of_json(capsys) -> None:
    assert main(["study", "schema"]) == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))
