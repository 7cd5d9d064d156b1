"""Methods × models: one study, and what it says as a table, a front and pictures of the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from obliteratus.analysis.atlas import Atlas
from obliteratus.analysis.module import ANALYSES
from obliteratus.community.recording import Entry, recording
from obliteratus.errors import UsageError
from obliteratus.pictures.drawn import drawn
from obliteratus.pictures.front import front_picture
from obliteratus.pictures.spec import Picture
from obliteratus.pictures.style import as_png, as_svg
from obliteratus.pipeline.analyze import analyze
from obliteratus.pipeline.methods import settings_for
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.front import Contender, ranks
from obliteratus.store import Store, write_json
from obliteratus.studies.results import results
from obliteratus.studies.run import StudyResult, counted, run_study
from obliteratus.studies.schema import Metric, Study

NAME, LAYERS, TABLE_FILE = "benchmark", "cross_layer_alignment", "benchmark.json"
REFUSAL, DIVERGENCE = "refusal_harmful", "kl_first"
METRICS: tuple[Metric, ...] = (
    "refusal_harmful",
    "refusal_harmless",
    "degenerate_harmful",
    "log_odds_harmful",
    "kl_first",
    "perplexity_heldout",
)


@dataclass(frozen=True)
class Candidate:
    """One method on one model.

    Attributes:
        model: The model's name.
        method: The method's name.
        estimates: By metric: the value after the edit, of perplexity the ratio to before.
        seconds: How long mapping, editing and measuring took, with what the cache held.
        beaten_by: The methods that are surely better in refusal or divergence and not worse in the
            other; a method that nobody beats is on the front.
        alone: Why it was measured by itself, in the weights; None where others shared its batches,
            or there was none to share them with.
    """

    model: str
    method: str
    estimates: Mapping[str, Estimate]
    seconds: float
    beaten_by: tuple[str, ...] = ()
    alone: str | None = None

    @property
    def contender(self) -> Contender:
        """The method with what it is compared by."""
        return Contender(self.method, self.estimates[REFUSAL], self.estimates[DIVERGENCE])

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "model": self.model,
            "method": self.method,
            "estimates": {name: each.as_json() for name, each in self.estimates.items()},
            "seconds": round(self.seconds, 3),
            "beaten_by": list(self.beaten_by),
            "one_by_one_because": self.alone,
        }


@dataclass(frozen=True)
class Benchmark:
    """The candidates by model, those of the least refusal first, and the study behind them."""

    candidates: tuple[Candidate, ...]
    study: StudyResult
    pictures: tuple[Path, ...]


def benchmark(
    models: Sequence[str],
    methods: Sequence[str],
    output: Path,
    *,
    prompts: int = 0,
    workers: int = 1,
    common: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> Benchmark:
    """Edit every model by every method, measure on the same test prompts, and compare.

    All candidates of a model share it in memory and the measurement of the original, and those
    that hooks make exactly share the batches in which they are measured. ``output`` is
    the folder of a study (:func:`obliteratus.studies.run.run_study`): the same call goes on where
    a killed one stopped. It gets ``benchmark.json``, a picture of refusal against divergence, and
    for each model two of its layers: the cosines of their directions, and how the direction turns.

    Raises:
        UsageError: there is no model or no method, or a name is wrong.
        ObliteratusError: see the stages.
    """
    if not models or not methods:
        raise UsageError("a benchmark needs --models and --methods, each with at least one name.")
    study = Study(
        name=NAME,
        question="Which method removes most at the least divergence?",
        models=tuple(models),
        methods=tuple(methods),
        metrics=METRICS,
        prompts=prompts,
        common=dict(common or {}),
    )
    store = store or Store()
    with recording(Entry("study", ", ".join(models), method=NAME, folder=output)) as entry:
        done = run_study(study, output, workers=workers, store=store)
        entry.numbers |= counted(done.pace)
        found = ranked(candidates(done))
        write_json(output / TABLE_FILE, [each.as_json() for each in found])
        shown = [_saved(picture(model, found), output / f"pareto-{_stem(model)}.png")
                 for model in models if any(each.model == model for each in found)]  # fmt: skip
        for model in models:
            shown += _layers(model, output, common or {}, store)
    return Benchmark(found, done, tuple(shown))


def candidates(done: StudyResult) -> tuple[Candidate, ...]:
    """Return what finished units found."""
    facts = {unit.entry.id: unit.result["facts"] for unit in done.units if unit.result}
    by_unit: dict[str, list[Mapping[str, Any]]] = {}
    for row in results(NAME, done.units).rows:
        if row["metric"]:
            by_unit.setdefault(row["unit"], []).append(row)
    return tuple(
        Candidate(
            rows[0]["model"],
            rows[0]["method"],
            {row["metric"]: _estimate(row) for row in rows},
            rows[0]["seconds"],
            alone=facts[unit].get("one_by_one_because"),
        )
        for unit, rows in by_unit.items()
    )


def ranked(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return candidates by model and refusal, each with those of its model that beat it."""
    said: list[Candidate] = []
    for model in dict.fromkeys(each.model for each in found):
        mine = [each for each in found if each.model == model]
        stands = ranks([each.contender for each in mine])
        said += sorted(
            (replace(each, beaten_by=stands[each.method].beaten_by) for each in mine),
            key=lambda c: (c.estimates[REFUSAL].value, c.estimates[DIVERGENCE].value),
        )
    return tuple(said)


def picture(model: str, found: Sequence[Candidate]) -> Picture:
    """Return refusal against divergence for one model; the front has a colour of its own."""
    mine = [each.contender for each in found if each.model == model]
    return front_picture(f"{model}: refusal against divergence", mine, ranks(mine))


def _estimate(row: Mapping[str, Any]) -> Estimate:
    name = "change" if row["metric"] == "perplexity_heldout" else "value"
    value, low, high = (float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    return Estimate(value, (low, high), n=int(row["n"]))


def _layers(model: str, output: Path, common: Mapping[str, Any], store: Store) -> list[Path]:
    """Draw the layers of one model from the analysis that measures them, where it finds any."""
    settings = settings_for("advanced", [], {**common, "analyze": {"modules": [LAYERS]}})
    folder = output / f"layers-{_stem(model)}"
    atlas: Atlas = analyze(model, folder, settings, force=True, store=store).atlas
    if LAYERS not in atlas.findings:
        return []
    pictures = ANALYSES[LAYERS].pictures(atlas.findings[LAYERS])
    return [
        _saved(each, output / f"layers-{_stem(model)}-{place}.png")
        for place, each in enumerate(pictures, start=1)
    ]


def _saved(picture: Picture, path: Path) -> Path:
    figure = drawn(picture)
    path.write_bytes(as_png(figure))
    path.with_suffix(".svg").write_text(as_svg(figure), encoding="utf-8")  # for a page
    return path


def _stem(model: str) -> str:
    return Path(model).name
