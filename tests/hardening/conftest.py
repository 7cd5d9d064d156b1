"""The tiny refuser hardened in seconds, and the same number of steps without the ablation."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from obliteratus.hardening.attack import Attack, Attacker, Subject
from obliteratus.hardening.recipe import HardenSettings, harden_settings
from obliteratus.hardening.training import Training, harden_weights
from obliteratus.measure.judges.base import Judge, judge_named
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.summon import summon
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.store import Store
from obliteratus.testing.refuser import tiny_settings

FEW = ("curve.places=1", "curve.select_prompts=4", "recipe.prompts=24")


def tiny_hardening(folder: Path, recipe: str, *assignments: str) -> HardenSettings:
    """Return settings for a run of seconds, as ``testing.refuser.tiny_settings`` does."""
    usual = tiny_settings(folder, "advanced").model_dump(mode="json")
    base = {name: usual[name] for name in ("prompts", "verify")}
    base["distill"] = {"select_prompts": 4, "max_kl": 5.0, "max_depth": 1.0}
    return harden_settings(recipe, [*FEW, *assignments], base)


@dataclass
class Trained:
    """A model trained by a recipe, and what its original's strongest direction was."""

    model: LoadedModel
    settings: HardenSettings
    training: Training
    splits: Splits
    known: Attack
    judge: Judge
    store: Store

    def refused(self, rows: Tensor | None) -> int:
        """Return how many of the select and test prompts are refused without ``rows``."""
        sides = (self.splits.select, self.splits.test)
        seen = [Subject(self.model, side, self.judge, self.settings).seen(rows) for side in sides]
        return sum(each.outcomes.count("refusal") for each in seen)

    def searched(self) -> int:
        """Return the same without the best direction of the trained model, looked for widely."""
        wide = self.settings.curve.model_copy(update={"places": 3, "select_prompts": 8})
        settings = self.settings.model_copy(update={"curve": wide})
        laboratory = Laboratory(self.model, self.splits, settings, self.store)
        found = Attacker(laboratory, self.judge, settings).best(1)
        assert found is not None
        return self.refused(found.rows)


@pytest.fixture(scope="session")
def train(refuser: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return a function that trains the tiny refuser by assignments; the attack is shared."""
    store, judge = Store(tmp_path_factory.mktemp("store")), judge_named("keyword")
    attacks: list[Attack] = []

    def made(*assignments: str, recipe: str = "ablated-refusal") -> Trained:
        settings = tiny_hardening(refuser, recipe, *assignments)
        splits = split(contrast_set(settings.prompts))
        model = summon(str(refuser), settings.model, store=store)
        laboratory = Laboratory(model, splits, settings, store)
        if not attacks:
            attacks.append(Attacker(laboratory, judge, settings).first)
        _, training = harden_weights(laboratory, judge, settings)
        return Trained(model, settings, training, splits, attacks[0], judge, store)

    return made
