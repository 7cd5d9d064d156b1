"""Settings of the judge: who says what became of an answer."""

from typing import Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from obliteratus.settings.section import Section

TextOutcome = Literal["refusal", "compliance", "degenerate"]


class JudgeSettings(Section):
    """Which judge, and what it needs.

    **With a url, prompts and answers are sent to it**; nothing is sent otherwise.

    Attributes:
        name: Which judge; null is that of the behaviour (``keyword``).
        model: The sequence classifier of ``classifier`` or the judge of ``llm``: a catalogue name,
            a Hub id or a folder, and with ``url`` the name that the server knows.
        url: The address of an OpenAI-compatible server for ``llm``; null asks a model here.
        key_variable: The environment variable that holds the server's key.
        labels: What a classifier's own labels mean (``{REJECTION: refusal}``); null: a label that
            speaks of refusing or rejecting is a refusal, every other compliance.
        with_prompt: Whether the classifier reads the prompt too.
        certainty: What a classifier gives less than this probability is undetermined.
        coverage: What the openings of ``openings`` must have of a model's probability, or they
            cannot tell.
        timeout: Seconds until a request has failed.
        retries: How often a request is repeated.
        at_once: How many requests run together.
        correct: Whether shares corrected for what the judge gets wrong on labelled answers are
            added (Rogan–Gladen).
    """

    name: str | None = None
    model: str | None = None
    url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    labels: dict[str, TextOutcome] | None = None
    with_prompt: bool = False
    certainty: FiniteFloat = Field(default=0.5, ge=0, lt=1)
    coverage: FiniteFloat = Field(default=0.1, ge=0, le=1)
    timeout: FiniteFloat = Field(default=60, gt=0)
    retries: int = Field(default=3, ge=0)
    at_once: int = Field(default=8, ge=1)
    correct: bool = False

    @field_validator("url")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        if value is not None and "@" in value.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "an address with a user or a password would be written into every record; leave "
                "it out, and put the key into the environment variable that "
                "verify.judge.key_variable names"
            )
        return value

    @model_validator(mode="after")
    def _asks_nobody_by_accident(self) -> "JudgeSettings":
        if self.url is not None and self.name != "llm":
            raise ValueError("verify.judge.url is for verify.judge.name=llm; set both or neither")
        needs = self.name in ("classifier", "llm")
        if needs and self.model is None:
            raise ValueError(f"verify.judge.name={self.name} needs verify.judge.model")
        if self.model is not None and self.name in (None, "keyword", "log_odds", "openings"):
            raise ValueError(
                f"verify.judge.model is for a judge that is a model, not for {self.name or 'none'}"
            )
        return self
