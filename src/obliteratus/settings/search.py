"""Settings of the searches that begin where the selection of DISTILL ends."""

from typing import Annotated

from pydantic import Field, FiniteFloat, field_validator

from obliteratus.settings.section import Section


class TuneSettings(Section):
    """Strengths per layer and component, and the directions, by gradient through the model.

    ``steps`` 0 leaves what the selection found. Each step takes ``prompts`` harmful fit prompts
    that the model refuses and as many harmless ones, and lowers

      softplus(refusal log-odds) + λ · KL(original ‖ edited),

    the KL averaged over the first token and ``response_tokens`` tokens of the original's own
    answer. ``kl_weights`` are the values of λ, one path from the mildest edit on: each begins with
    the best of the one before, ``steps`` steps for each. Every ``check_every`` steps the mean of
    these parameters is measured on ``select_prompts`` select prompts of each class, its strengths
    scaled to the least refusal within a first-token KL of ``kl_budget`` (null: as they are). The
    best of these is used, and ``patience`` checks without a better one end the search.
    ``harmless_prompts`` bounds the fit prompts whose answers are kept.

    ``rank`` directions are tuned, all in every layer. Strengths begin at ``start``;
    ``strength_rate`` and ``direction_rate`` are the step sizes of Adam (0 keeps), and ``sparsity``
    is the share of a step by which every layer's strengths are pulled to 0, so that layers that do
    not matter are left alone. With ``categories`` only these harmful prompts are to be answered,
    and answers to the others are kept. ``shuffled_null`` tunes once more with shuffled labels, to
    show what the same search gives where there is nothing to find. ``recompute`` runs every block
    twice, for models whose graph does not fit into memory.
    """

    steps: int = Field(default=0, ge=0)
    prompts: int = Field(default=16, ge=1)
    harmless_prompts: int = Field(default=128, ge=1)
    kl_weights: tuple[Annotated[FiniteFloat, Field(ge=0)], ...] = Field(default=(10.0,))
    response_tokens: int = Field(default=2, ge=0)
    kl_budget: FiniteFloat | None = Field(default=None, gt=0)
    check_every: int = Field(default=10, ge=1)
    patience: int = Field(default=2, ge=1)
    select_prompts: int = Field(default=64, ge=2)
    rank: int = Field(default=1, ge=1, le=64)
    start: float = Field(default=0.6, gt=0)
    strength_rate: float = Field(default=0.08, ge=0)
    direction_rate: float = Field(default=0.01, ge=0)
    sparsity: float = Field(default=0, ge=0)
    categories: tuple[str, ...] = ()
    shuffled_null: bool = False
    recompute: bool = False

    @field_validator("kl_weights", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("kl_weights")
    @classmethod
    def _mildest_first(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(value, reverse=True):
            raise ValueError("give at least one weight, the largest (mildest edit) first")
        return value


class RdoSettings(Section):
    """Refusal direction optimisation and concept cones (2502.17420), by gradient with unit vectors.

    ``steps`` 0 leaves what the selection found. Each step takes ``prompts`` harmful fit prompts
    that the model refuses and as many harmless ones that it answers, and lowers

      ``ablation`` · NLL(answers with δ̂ ablated | r ablated)
      + ``addition`` · NLL(refusals with δ added | ‖δ‖ r added)
      + ``retain`` · KL(original ‖ r ablated)

    over the first ``target_tokens`` tokens of each answer, with steps of Adam of ``rate``. Every
    ``check_every`` steps the direction is measured on select prompts; the best one is used, and
    ``patience`` checks without a better one end the search. ``cone`` is the largest dimension that
    is tried: each of its vectors, and ``samples`` random combinations of them with coefficients
    that are not negative, must do the same. ``shuffled_null`` repeats the optimisation of
    one direction with shuffled labels.
    """

    steps: int = Field(default=0, ge=0)
    prompts: int = Field(default=16, ge=1)
    ablation: float = Field(default=1.0, ge=0)
    addition: float = Field(default=0.2, ge=0)
    retain: float = Field(default=1.0, ge=0)
    target_tokens: int = Field(default=30, ge=1)
    rate: float = Field(default=0.01, ge=0)
    check_every: int = Field(default=10, ge=1)
    patience: int = Field(default=3, ge=1)
    cone: int = Field(default=1, ge=1, le=16)
    samples: int = Field(default=2, ge=0)
    shuffled_null: bool = False


class KernelSettings(Section):
    """Strengths by a kernel over the blocks, and the layer of the direction, by trials.

    ``trials`` 0 leaves what the selection found. Otherwise so many edits are tried: a kernel for
    each component, with the largest strength, the block of its peak, the smallest strength and the
    distance in blocks at which it is reached, times the direction of one layer or of a place
    between two (with ``distill.selection=per_layer``, each block's own). The first
    ``startup_trials`` are random, the others come from a tree-structured Parzen estimator with two
    objectives: refusals among the answers of ``tokens`` tokens to ``prompts`` harmful select
    prompts, and the first-token KL on harmless ones. Of the trials within ``distill.max_kl`` the
    one with the fewest refusals is used. More trials than before go on where those ended.
    """

    trials: int = Field(default=0, ge=0)
    startup_trials: int = Field(default=40, ge=1)
    prompts: int = Field(default=64, ge=1)
    tokens: int = Field(default=32, ge=1)
