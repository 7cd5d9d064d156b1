"""Everything that determines a run, one section per stage."""

from typing import Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from obliteratus.settings.analyze import AnalyzeSettings
from obliteratus.settings.edit import EditSettings
from obliteratus.settings.informed import InformedSettings
from obliteratus.settings.judge import JudgeSettings
from obliteratus.settings.search import KernelSettings, RdoSettings, TuneSettings
from obliteratus.settings.section import Section


class ModelSettings(Section):
    """SUMMON: how the model is loaded.

    ``parallel`` is what the processes that torchrun started share: the model's matrices
    (``tensor``) or the prompts that are read (``data``).
    """

    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    device_map: str | None = None
    max_memory: str | None = None
    quantize: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    parallel: Literal["tensor", "data"] | None = None


class PromptSettings(Section):
    """The contrast set: the built-in one, or files / Hub data sets given by both names."""

    harmful: str | None = None
    harmless: str | None = None
    categories: tuple[str, ...] | None = None
    system: str | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> "PromptSettings":
        if (self.harmful is None) != (self.harmless is None):
            raise ValueError("prompts.harmful and prompts.harmless must be given together")
        return self


class ProbeSettings(Section):
    """PROBE: where activations are read. ``batch_tokens`` bounds a batch; 0 chooses by memory."""

    positions: Literal["last", "post_instruction"] = "last"
    batch_tokens: int = Field(default=0, ge=0)
    save_activations: bool = False


class DistillSettings(Section):
    """DISTILL: which extractor, how many directions, and how one is selected.

    ``knobs`` are those of the extractor (``{quantile: 0.99}``); one that it does not have is an
    error. ``max_kl`` is the gate on the first-token KL of the ablated model on harmless select
    prompts, ``max_depth`` the share of the layers from which a direction may come,
    ``select_prompts`` the number of harmful and of harmless select prompts that score one
    candidate. ``selection`` is ``published`` (2406.11717, by refusal log-odds), ``cosmic``
    (2506.00085, by activations alone) or ``per_layer``. Ranks from ``min_rank`` up to
    ``max_rank`` and strengths from 1 up to ``max_strength`` are tried and kept while they lower
    refusal beyond noise within ``max_kl``; where an extractor gives fewer than ``min_rank``
    directions, all are taken.
    """

    extractor: str = "difference_of_means"
    knobs: dict[str, int | FiniteFloat] = Field(default={})
    min_rank: int = Field(default=1, ge=1, le=64)
    max_rank: int = Field(default=1, ge=1, le=64)
    max_strength: float = Field(default=1, ge=1, le=2)
    selection: Literal["published", "cosmic", "per_layer"] = "published"
    select_prompts: int = Field(default=32, ge=2)
    max_kl: float = Field(default=0.1, gt=0)
    max_depth: float = Field(default=0.8, gt=0, le=1)
    tune: TuneSettings = TuneSettings()
    rdo: RdoSettings = RdoSettings()
    kernel: KernelSettings = KernelSettings()

    @property
    def without_search(self) -> "DistillSettings":
        """The same selection, with nothing that begins where it ends."""
        plain = {"tune": TuneSettings(), "rdo": RdoSettings(), "kernel": KernelSettings()}
        return self.model_copy(update=plain)

    @model_validator(mode="after")
    def _ranks_in_order(self) -> "DistillSettings":
        if self.min_rank > self.max_rank:
            raise ValueError(
                f"distill.min_rank={self.min_rank} is more than distill.max_rank={self.max_rank}; "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _one_direction(self) -> "DistillSettings":
        is_one = self.selection != "per_layer" and self.max_rank == 1 and self.max_strength == 1
        if self.rdo.steps and not is_one:
            raise ValueError(
                "distill.rdo begins with one direction at strength 1: it needs distill.max_rank=1, "
                "distill.max_strength=1 and distill.selection=published or cosmic"
            )
        return self

    @model_validator(mode="after")
    def _budget_within_gate(self) -> "DistillSettings":
        budget = self.tune.kl_budget
        if budget is not None and budget > self.max_kl:
            raise ValueError(
                f"distill.tune.kl_budget={budget:g} is beyond distill.max_kl={self.max_kl:g}; "
                "lower the budget or raise distill.max_kl"
            )
        return self

    @model_validator(mode="after")
    def _one_search(self) -> "DistillSettings":
        if not self.kernel.trials:
            return self
        if self.tune.steps or self.rdo.steps:
            other = "tune" if self.tune.steps else "rdo"
            raise ValueError(
                f"distill.kernel.trials and distill.{other}.steps are two searches for one edit; "
                "set one of them to 0"
            )
        if self.max_rank > 1 or self.max_strength > 1:
            raise ValueError(
                "distill.kernel.trials searches one direction and its strengths; set "
                "distill.max_rank=1 and distill.max_strength=1"
            )
        return self


EarlyStopping = Literal["off", "certain", "bounded"]


class VerifySettings(Section):
    """VERIFY: how much is measured.

    Attributes:
        prompts: Bounds the test prompts of each class; 0 takes all, 1 would have no interval.
        max_new_tokens: Tokens of each answer.
        sequence_prompts: Harmless prompts along whose answers the divergence is measured; an
            interval takes two.
        sequence_tokens: Tokens of each of these answers.
        random_controls: How many random directions are measured beside the edit.
        dose: Whether the edit is measured at shares of its strength (not of two models that are
            given: there is no plan to scale).
        over_refusal: How many safe prompts that look unsafe are asked as well (100 are built in);
            0 asks none.
        early_stop: For answers to harmful prompts and to safe look-alikes: ``certain`` stops one
            when its judge's ruling cannot change any more, ``bounded`` also one that complies after
            36 tokens, except for a tenth of the prompts, which tells how many rulings would have
            changed.
        generator: What lets a model answer: ``vllm``, where it is installed, loads a model's folder
            by itself and answers to the end.
        text: What perplexity is measured on: a file (``.txt`` and ``.md`` with blank lines between
            documents, or rows of ``.csv``, ``.json``, ``.jsonl``, ``.parquet``) or
            ``hub:owner/name[:split[:column]]``; null are the documents built in.
        text_documents: How many of its documents are taken, from the first; of those built in, as
            many of every genre.
        capability: Tasks: ``multiple_choice`` and ``word_problems`` are built in, others are tasks
            or groups of lm-eval, also of YAML files in the folder ``capability_files``.
        capability_items: How many items of each task are run; 0 runs all. More cost time and find
            smaller losses.
        capability_files: A folder with tasks of lm-eval as YAML files.
        capability_chat_template: Whether tasks of lm-eval are put to a model through its chat
            template.
        coherence: Whether harmless answers are compared by their embeddings.
        thoughts: Whether thoughts of a model that thinks before it answers are skipped, or it
            thinks and they are scored ``apart`` from its answers.
        thought_tokens: What each thought may take, beside ``max_new_tokens`` of the answer; where
            one takes more, the answer is undetermined.
        save_completions: Whether answers to harmful prompts are kept.
        judge: Who judges the answers.
    """

    prompts: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    sequence_prompts: int = Field(default=64, ge=2)
    sequence_tokens: int = Field(default=32, ge=1)
    random_controls: int = Field(default=3, ge=0)
    dose: bool = True
    over_refusal: int = Field(default=100, ge=0)
    early_stop: EarlyStopping = "off"
    generator: str = "transformers"
    text: str | None = None
    text_documents: int = Field(default=200, ge=2)
    capability: tuple[str, ...] = ()
    capability_items: int = Field(default=200, ge=0)
    capability_files: str | None = None
    capability_chat_template: bool = True
    coherence: bool = True
    thoughts: Literal["skip", "apart"] = "skip"
    thought_tokens: int = Field(default=512, ge=1)
    save_completions: bool = False
    judge: JudgeSettings = JudgeSettings()

    @field_validator("prompts")
    @classmethod
    def _one_prompt_has_no_interval(cls, value: int) -> int:
        if value == 1:
            raise ValueError("an interval takes at least two prompts; 0 takes all")
        return value

    @model_validator(mode="after")
    def _thoughts_stand_before_answers(self) -> "VerifySettings":
        if self.thoughts == "apart" and self.judge.name in ("log_odds", "openings"):
            raise ValueError(
                f"verify.judge.name={self.judge.name} reads no answers, so there is no thought to "
                "score apart; set verify.thoughts=skip or another judge"
            )
        return self


class RunSettings(Section):
    """Everything that determines a run, besides the model's name and the versions in use.

    ``behaviour`` is what is mapped and edited: the prompts that are built in for it, the judge of
    the answers and the words of the report.
    """

    method: str = "advanced"
    behaviour: str = "refusal"
    seed: int = 0
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = PromptSettings()
    probe: ProbeSettings = ProbeSettings()
    analyze: AnalyzeSettings = AnalyzeSettings()
    distill: DistillSettings = DistillSettings()
    edit: EditSettings = EditSettings()
    informed: InformedSettings = InformedSettings()
    verify: VerifySettings = VerifySettings()

    @model_validator(mode="after")
    def _chosen_by_dose(self) -> "RunSettings":
        if self.edit.auto_regularize and not self.verify.dose:
            raise ValueError(
                "edit.auto_regularize=true chooses the strength by what verify.dose measures; set "
                "verify.dose=true"
            )
        return self
