"""Every command that is a run of its own is in the book, and how it ended."""

from pathlib import Path

import pytest

from obliteratus.community.book import Run, RunBook
from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.hardening.harden import harden
from obliteratus.hardening.recipe import harden_settings, recipe_named
from obliteratus.pipeline.analyze import analyze
from obliteratus.pipeline.find import find_directions
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.pipeline.stream import stream
from obliteratus.studies.benchmark import benchmark
from obliteratus.studies.sweep import sweep
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_model


def fails(*_arguments: object, **_options: object) -> None:
    raise MeasurementError("nothing to measure")


def the_run(path: Path) -> Run:
    with RunBook(path) as book:
        (run,) = book.runs()
        return run


@pytest.fixture
def directions() -> Directions:
    return random_directions(tiny_model("llama"))


@pytest.mark.parametrize(
    ("kind", "method", "inside"),
    [
        ("obliterate", "basic", "obliteratus.pipeline.run.Run.execute"),
        ("probe", "basic", "obliteratus.pipeline.run.Run.find"),
        ("analyze", None, "obliteratus.pipeline.analyze._Run.execute"),
        ("stream", "basic", "obliteratus.pipeline.stream._streamed"),
        ("sweep", "basic", "obliteratus.studies.sweep._swept"),
        ("harden", "plain-refusal", "obliteratus.hardening.harden._Run.execute"),
        ("study", "benchmark", "obliteratus.studies.benchmark.run_study"),
    ],
)
def test_a_failure_of_each_is_in_the_book(
    kind, method, inside, path: Path, tmp_path: Path, monkeypatch, directions
) -> None:
    monkeypatch.setattr(inside, fails)
    output, settings = tmp_path / "out", settings_for("basic")
    recipe = recipe_named("plain-refusal")
    commands = {
        "obliterate": lambda: obliterate("m", output, settings),
        "probe": lambda: find_directions("m", output, settings),
        "analyze": lambda: analyze("m", output, settings),
        "stream": lambda: stream("m", output, settings, directions),
        "sweep": lambda: sweep("m", output, settings),
        "harden": lambda: harden("m", output, recipe, harden_settings(recipe, [], {})),
        "study": lambda: benchmark(["m"], ["basic"], output),
    }
    with pytest.raises(MeasurementError):
        commands[kind]()
    run = the_run(path)
    assert (run.record.kind, run.record.method, run.local.model) == (kind, method, "m")
    assert (run.standing, run.record.error) == ("failed", "MeasurementError")
    assert run.local.folder == str(output)
