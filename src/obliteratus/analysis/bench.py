"""What all analyses of one model share; each piece is made once, when it is first asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from obliteratus.directions.directions import Directions
from obliteratus.errors import MeasurementError
from obliteratus.measure.behaviour import Behaviour
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.chat import Encoded, encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.probe.activations import Activations
from obliteratus.prompts.contrast import ContrastSet, Splits
from obliteratus.prompts.spread import limited
from obliteratus.settings import AnalyzeSettings
from obliteratus.store import Store


@dataclass(frozen=True)
class Encodings:
    """Both classes of some prompts as token ids, in the order of the prompts."""

    prompts: ContrastSet
    harmful: Encoded
    harmless: Encoded


@dataclass(frozen=True)
class Bench:
    """A model with its prompts and what was seen of it; what is not there yet is made when asked.

    ``probed`` returns the fit activations with every prompt kept, ``distilled`` the selected
    directions, ``calibrated`` the first tokens that show the behaviour (None where the model has
    none): all three may take minutes, and are called once. ``compared`` makes the bench of a second
    model with the same prompts (None: no other model was given). Interventions are made on
    :attr:`subset`, prompts of the select split, which neither directions nor tokens were fitted to.
    """

    model: LoadedModel
    splits: Splits
    behaviour: Behaviour
    settings: AnalyzeSettings
    probed: Callable[[], Activations] = field(repr=False)
    distilled: Callable[[], Directions] = field(repr=False)
    calibrated: Callable[[], RefusalTokens | None] = field(repr=False)
    compared: Callable[[], "Bench"] | None = field(default=None, repr=False)
    system: str | None = None
    seed: int = 0
    store: Store | None = None

    @cached_property
    def activations(self) -> Activations:
        """The stream of the fit prompts, every prompt kept."""
        return self.probed()

    @cached_property
    def directions(self) -> Directions:
        """The directions that DISTILL selected."""
        return self.distilled()

    @cached_property
    def tokens(self) -> RefusalTokens:
        """First tokens that show the behaviour.

        Raises:
            MeasurementError: the model has none, so nothing that is read from its first token can
                be measured.
        """
        found = self.calibrated()
        if found is None:
            raise MeasurementError(
                f"{self.model.source.asked} has no first tokens that show '{self.behaviour.name}', "
                "which this analysis reads. Leave it out with --modules."
            )
        return found

    @cached_property
    def other(self) -> "Bench":
        """The bench of the model that this one is compared with.

        Raises:
            MeasurementError: none was given.
        """
        if self.compared is None:
            raise MeasurementError(
                f"there is no second model to compare {self.model.source.asked} with. Give one "
                "with --other (analyze.other)."
            )
        return self.compared()

    @cached_property
    def head(self) -> Head:
        """The language-model head."""
        return head_of(self.model)

    @cached_property
    def subset(self) -> Encodings:
        """The select prompts that interventions are made on, at most ``settings.prompts`` a class.

        They are spread over the set, pairs kept together.
        """
        chosen = limited(self.splits.select, self.settings.prompts)
        harmful, harmless = (
            encode(self.model, [prompt.text for prompt in side], system=self.system)
            for side in (chosen.harmful, chosen.harmless)
        )
        return Encodings(chosen, harmful, harmless)
