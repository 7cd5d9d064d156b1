"""What is out of a model while it is trained: drawn from the attacker's menu, step by step."""

import random
from itertools import product

from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.samples import samples_at
from obliteratus.errors import DirectionError
from obliteratus.events import without_progress
from obliteratus.hardening.attack import PROPOSALS, spread_layers
from obliteratus.hardening.recipe import HardenSettings
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.activations import Activations
from obliteratus.probe.capture import probe
from obliteratus.prompts.contrast import ContrastSet
from obliteratus.prompts.spread import limited


class Adversary:
    """Draws directions of a model as it is: how many, where they are read, and how."""

    def __init__(self, model: LoadedModel, fit: ContrastSet, settings: HardenSettings) -> None:
        """Read nothing yet: :meth:`read` has to come first."""
        recipe = settings.recipe
        self._model, self._settings = model, settings
        self._prompts = limited(fit, recipe.direction_prompts)
        layers = spread_layers(model, recipe.places, settings.curve.depth)
        self._menu = list(product(recipe.ranks, layers, PROPOSALS))
        self._random = random.Random(f"adversary {settings.seed}")
        self._seen: Activations | None = None
        self.readings = 0

    def read(self) -> None:
        """Read the model as it is now."""
        settings = self._settings
        with without_progress():
            self._seen = probe(
                self._model, self._prompts, settings.probe, system=settings.prompts.system
            )
        self.readings += 1

    def draw(self) -> Float64[Tensor, "rank d_model"]:
        """Return some directions of the model as it was read last.

        Raises:
            DirectionError: nothing on the menu can be had: no more directions tell the classes
                apart than there are prompts.
        """
        assert self._seen is not None
        for rank, layer, name in self._random.sample(self._menu, len(self._menu)):
            try:
                rows = PROPOSALS[name](samples_at(self._seen, layer, -1), rank).cpu()
            except DirectionError:  # no categories, say: the next one
                continue
            if len(rows) == rank:
                return rows
        raise DirectionError(
            f"no {' or '.join(map(str, self._settings.recipe.ranks))} directions can be read from "
            f"{len(self._prompts.harmful)} prompts of each class. Raise recipe.direction_prompts."
        )
