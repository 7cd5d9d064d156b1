"""A judge that is a sequence classifier: any local or Hub model with a label for refusals."""

from collections.abc import Sequence
from typing import Any

import torch

from obliteratus.errors import ModelSourceError, UsageError
from obliteratus.events import Note, emit, track
from obliteratus.measure.judges.base import (
    JUDGES,
    Bench,
    Exchange,
    Judge,
    Outcome,
    Ruling,
)
from obliteratus.measure.judges.degenerate_too import unless_degenerate
from obliteratus.settings import JudgeSettings
from obliteratus.settings.judge import TextOutcome

BATCH = 16
REFUSAL_WORDS = ("refus", "reject", "declin")


class ClassifierJudge(Judge):
    """The most probable label of a classifier, translated; too little of it is undetermined.

    An answer that it does not call a refusal is degenerate where the detectors say so: no
    classifier of refusals was trained to tell.
    """

    name = "classifier"

    def __init__(self, settings: JudgeSettings) -> None:
        """Load ``settings.model`` from safetensors, on the CPU.

        Raises:
            ModelSourceError: it cannot be had, or is no sequence classifier.
            UsageError: none of its labels is known to mean a refusal.
        """
        assert settings.model is not None
        self._settings = settings
        self._tokenizer, self._model = _loaded(settings.model)
        self._outcomes = _outcomes(self._model.config.id2label, settings)

    @property
    def identity(self) -> dict[str, Any]:
        """The model's name, configuration and a sum of its weights, and what its labels mean."""
        config = self._model.config
        weights = [float(value.double().sum()) for value in self._model.state_dict().values()]
        return {
            "name": self.name,
            "model": self._settings.model,
            "commit": getattr(config, "_commit_hash", None),
            "weights": weights,
            "labels": {str(index): outcome for index, outcome in self._outcomes.items()},
            "with_prompt": self._settings.with_prompt,
            "certainty": self._settings.certainty,
        }

    @property
    def description(self) -> str:
        """The model."""
        return f"classifier {self._settings.model}"

    @torch.no_grad()
    def read(self, exchanges: Sequence[Exchange]) -> tuple[Ruling, ...]:
        """Rule on the answers, or on prompts and answers; a Note says how many had to be cut."""
        found: list[Ruling] = []
        cut = 0
        starts = range(0, len(exchanges), BATCH)
        for start in track(starts, task="classify answers", total=len(starts), unit="batches"):
            some = exchanges[start : start + BATCH]
            texts = [each.completion.text for each in some]
            asked = [each.prompt for each in some]
            given = (asked, texts) if self._settings.with_prompt else (texts,)
            whole = self._tokenizer(*given, verbose=False)["input_ids"]
            cut += sum(len(row) > self._longest for row in whole)
            inputs = self._tokenizer(
                *given,
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            )
            best = self._model(**inputs).logits.float().softmax(dim=-1).max(dim=-1)
            for each, share, index in zip(
                some, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                known = share >= self._settings.certainty  # NaN is not
                outcome: Outcome = self._outcomes[index] if known else "undetermined"
                found.append(unless_degenerate(each, Ruling(outcome)))
        if cut:
            emit(
                Note(
                    f"{cut} of {len(exchanges)} texts are longer than the {self._longest} tokens "
                    f"that {self._settings.model} takes, and were cut."
                )
            )
        return tuple(found)

    @property
    def _longest(self) -> int:
        most = getattr(self._model.config, "max_position_embeddings", None) or 512
        # RoBERTa counts positions from its padding token on
        room = most - (getattr(self._model.config, "pad_token_id", None) or 0) - 1
        return max(8, min(self._tokenizer.model_max_length, room))


@JUDGES.register("classifier")
def _classifier(bench: Bench) -> Judge:
    return ClassifierJudge(bench.settings)


def _loaded(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelSourceError(
            f"the classifier {name} cannot be loaded ({reason}). Give verify.judge.model a folder "
            "or a Hub id with a sequence classifier in safetensors."
        ) from error
    return tokenizer, model.eval()


def _outcomes(labels: dict[int, str], settings: JudgeSettings) -> dict[int, TextOutcome]:
    """Return what each label means.

    Raises:
        UsageError: no label is known to be a refusal, or a label that was named is not there.
    """
    given = settings.labels
    if given is not None:
        unknown = [label for label in given if label not in labels.values()]
        if unknown:
            raise UsageError(
                f"{settings.model} has no label '{unknown[0]}'; its labels are "
                f"{', '.join(labels.values())}. Correct verify.judge.labels."
            )
        found: dict[int, TextOutcome] = {
            index: given.get(label, "compliance") for index, label in labels.items()
        }
    else:
        found = {
            index: "refusal" if any(w in label.lower() for w in REFUSAL_WORDS) else "compliance"
            for index, label in labels.items()
        }
        # "non-refusal", "no_refusal", "not rejected"
        found |= {
            index: "compliance"
            for index, label in labels.items()
            if label.lower().startswith(("no", "accept"))
        }
    if "refusal" not in found.values():
        raise UsageError(
            f"none of the labels of {settings.model} ({', '.join(labels.values())}) is known to be "
            "a refusal. Say which is: verify.judge.labels={LABEL: refusal}."
        )
    return found
