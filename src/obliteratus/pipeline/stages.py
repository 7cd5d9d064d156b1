"""PROBE and DISTILL behind the cache: each is computed once for everything that determines it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache

from jaxtyping import Float
from torch import Tensor

from obliteratus.directions.directions import Directions
from obliteratus.directions.distill import distill
from obliteratus.directions.permuted import permuted_directions, permuted_prompts
from obliteratus.directions.rdo import rdo
from obliteratus.directions.rdo_objective import RdoObjective
from obliteratus.directions.score import Scorer
from obliteratus.errors import DirectionError, NoRefusalTokensError
from obliteratus.events import Deviation, Note, emit
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.measure.log_odds import RefusalTokens, calibrate
from obliteratus.models.loaded import LoadedModel
from obliteratus.pipeline.kernel_search import KernelSearch, search_identity
from obliteratus.pipeline.tuning import Tuning
from obliteratus.probe.activations import Activations
from obliteratus.probe.capture import last_states, probe
from obliteratus.probe.files import load_activations, save_activations
from obliteratus.prompts.contrast import ContrastSet, Splits
from obliteratus.release.directions_file import load_directions, save_directions
from obliteratus.settings import DistillSettings, RunSettings
from obliteratus.store import Store, content_key
from obliteratus.verify.identity import code_fingerprint, versions, weights_fingerprint

ACTIVATIONS_FILE = "activations.safetensors"
DIRECTIONS_FILE = "directions.safetensors"
PLAIN, PROJECTED = "difference_of_means", "projected_difference_of_means"


class Laboratory:
    """A model in memory with its prompts and the cache: runs the stages that look at it.

    ``weights`` tells an edited model in memory from the one it was made from, so that every pass
    has results of its own.
    """

    def __init__(
        self, model: LoadedModel, splits: Splits, settings: RunSettings, store: Store
    ) -> None:
        """Fingerprint the weights as they are in memory now."""
        self.model = model
        self.splits = splits
        self.settings = settings
        self.store = store
        self.behaviour = BEHAVIOURS[settings.behaviour]
        self.identity: Mapping[str, object] = {
            "weights": weights_fingerprint(model),
            "source": model.source.fingerprint,
            "dtype": str(model.dtype),
            "device": model.device.type,
            "template": model.chat_template_sha256,
            "system": settings.prompts.system,
            "versions": versions(),
            "code": code_fingerprint(),
        }

    def under(self, settings: RunSettings) -> "Laboratory":
        """Return the same model, weights as they were, with other settings of the later stages."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def probed(self) -> tuple[Activations, bool]:
        """Return the fit activations, and whether they were in the cache."""
        probe_settings = self.settings.probe
        key = content_key(
            "probe",
            **self.identity,
            prompts=self.splits.fit.sha256,
            positions=probe_settings.positions,
            batch=probe_settings.batch_tokens,
        )
        return self.store.cached(
            key,
            lambda: probe(
                self.model, self.splits.fit, probe_settings, system=self.settings.prompts.system
            ),
            lambda value, folder: save_activations(value, folder / ACTIVATIONS_FILE),
            lambda folder: load_activations(folder / ACTIVATIONS_FILE),
        )

    def refusal_tokens(self, activations: Activations) -> RefusalTokens | None:
        """Return the first tokens of answers that show the behaviour, calibrated on fit prompts.

        None where the behaviour has no openings, which nothing is decided by then, or where the
        model has none of these tokens and the settings need none: COSMIC for one direction at
        strength 1.

        Raises:
            MeasurementError: see :func:`obliteratus.measure.log_odds.calibrate`.
        """
        if not self.behaviour.openings:
            return None
        try:
            return calibrate(
                self.model,
                last_states(self.model, activations, "harmful"),
                last_states(self.model, activations, "harmless"),
                openings=self.behaviour.openings,
            )
        except NoRefusalTokensError as error:
            if needs_log_odds(self.settings):
                raise
            emit(Note(f"no {self.behaviour.words.noun} log-odds are reported: {error}"))
            return None

    def distilled(
        self, activations: Activations, tokens: RefusalTokens | None
    ) -> tuple[Directions, bool]:
        """Return the directions that the settings ask for, and whether they were in the cache.

        What is selected before a search is cached by itself, for every search that begins there.
        """
        asked = self.settings.distill
        alone, scorer = asked.without_search, cache(lambda: self.scorer(tokens))

        def selected() -> tuple[Directions, bool]:
            return self._cached(alone, tokens, lambda: self._selected(activations, scorer(), alone))

        if alone == asked:
            return selected()
        return self._cached(
            asked, tokens, lambda: self._searched(activations, selected()[0], scorer())
        )

    def _cached(
        self,
        distill: DistillSettings,
        tokens: RefusalTokens | None,
        compute: Callable[[], Directions],
    ) -> tuple[Directions, bool]:
        settings = self.settings
        key = content_key(
            "distill",
            **self.identity,
            behaviour=self.behaviour.name,
            fit=self.splits.fit.sha256,
            select=self.splits.select.sha256,
            positions=settings.probe.positions,
            distill=distill.model_dump(mode="json"),
            embedding=settings.edit.edits_embedding,
            post_norm=settings.edit.post_norm,
            seed=settings.seed,
            tokens=None if tokens is None else list(tokens.ids),
        )
        return self.store.cached(
            key,
            compute,
            lambda value, folder: save_directions(value, folder / DIRECTIONS_FILE),
            lambda folder: load_directions(folder / DIRECTIONS_FILE),
        )

    def _selected(
        self, activations: Activations, scorer: Scorer, asked: DistillSettings
    ) -> Directions:
        """Return what the selection finds; its provenance says of which behaviour it is.

        Where no first token tells the behaviour and no direction turns one class into the other,
        the next of :func:`easier` is tried, which is recorded as a Deviation.
        """
        facts: dict[str, object] = {
            "behaviour": self.behaviour.name,
            "noun": self.behaviour.words.noun,
        }
        easier_ones = [] if self.behaviour.openings else easier(asked)
        tried, reason = asked, ""
        while True:
            try:
                found = distill(activations, scorer, tried, seed=self.settings.seed)
                break
            except DirectionError as error:
                if not easier_ones:
                    raise
                tried, reason = easier_ones.pop(0), reason or str(error).rstrip(".")
        if tried != asked:
            name = "extractor" if tried.extractor != asked.extractor else "selection"
            before, after = (f"distill.{name}={getattr(s, name)}" for s in (asked, tried))
            facts["deviations"] = [asdict(Deviation("distill", before, after, reason))]
        return replace(found, provenance={**found.provenance, **facts})

    def _searched(
        self, activations: Activations, selected: Directions, scorer: Scorer
    ) -> Directions:
        """Return what the searches that are asked for make of the ``selected`` directions."""
        settings = self.settings
        facts = {"settings": settings.distill.model_dump(mode="json")}
        found = replace(selected, provenance={**selected.provenance, **facts})
        if settings.distill.rdo.steps:
            found = self._optimised(activations, found, scorer)
        if settings.distill.kernel.trials:
            folder = self.store.root / self._search_key(scorer)
            by_trials = KernelSearch(self.model, self.splits, settings, activations, scorer, folder)
            return by_trials.searched(found)
        if not settings.distill.tune.steps:
            return found
        search = Tuning(self.model, self.splits, settings, activations, scorer)
        return search.tuned(found)

    def _search_key(self, scorer: Scorer) -> str:
        """Name a search by all that determines its trials, but how many: more can follow."""
        distill, kernel = self.settings.distill, self.settings.distill.kernel
        return content_key(
            "kernel",
            **self.identity,
            behaviour=self.behaviour.name,
            search=search_identity(),
            fit=self.splits.fit.sha256,
            select=self.splits.select.sha256,
            extractor=[distill.extractor, dict(distill.knobs)],
            selection=[distill.selection, distill.max_depth, scorer.prompts],
            kernel=kernel.model_dump(mode="json", exclude={"trials"}),
            post_norm=scorer.post_norm,
            seed=self.settings.seed,
            tokens=None if scorer.tokens is None else list(scorer.tokens.ids),
        )

    def _optimised(self, activations: Activations, start: Directions, scorer: Scorer) -> Directions:
        """Return ``start`` optimised by gradient, beside its null where that is asked for."""
        settings = self.settings.distill.rdo

        def objective(start: Directions, fit: ContrastSet) -> RdoObjective:
            system = self.settings.prompts.system
            return RdoObjective(scorer, fit, start, settings, system=system)

        seed, null = self.settings.seed, None
        if settings.shuffled_null:
            shuffled = permuted_directions(activations, start, seed)
            null = objective(shuffled, permuted_prompts(self.splits.fit, seed))
        return rdo(
            start,
            scorer,
            objective(start, self.splits.fit),
            settings,
            max_kl=self.settings.distill.max_kl,
            null=null,
            seed=seed,
        )

    def scorer(
        self,
        tokens: RefusalTokens | None,
        *,
        reference: Float[Tensor, "harmless vocab"] | None = None,
    ) -> Scorer:
        """Return what scores directions on the select prompts; making it runs the model.

        Divergence is measured from ``reference`` (:class:`obliteratus.directions.score.Scorer`).
        """
        return Scorer(
            self.model,
            self.splits.select,
            tokens,
            prompts=self.settings.distill.select_prompts,
            system=self.settings.prompts.system,
            embedding=self.settings.edit.edits_embedding,
            post_norm=self.settings.edit.post_norm,
            reference=reference,
        )


def needs_log_odds(settings: RunSettings) -> bool:
    """Say whether the log-odds of first tokens decide something that ``settings`` ask for."""
    distill = settings.distill
    return (
        distill.selection != "cosmic"
        or distill.max_rank > 1
        or distill.max_strength > 1
        or distill.tune.steps > 0
        or distill.rdo.steps > 0
        or settings.edit.passes > 1
    )


def easier(asked: DistillSettings) -> list[DistillSettings]:
    """Return what to try where COSMIC finds no direction, in order.

    Two kinds of prompts that are much alike share most of what a plain difference of means takes
    out, so that removing it makes them less alike; projected, it keeps what they share. At last
    every block keeps its own direction, which is chosen by nothing.
    """
    if asked.selection != "cosmic":
        return []
    found = [asked.model_copy(update={"selection": "per_layer"})]
    if asked.extractor == PLAIN:
        found.insert(0, asked.model_copy(update={"extractor": PROJECTED}))
    return found
