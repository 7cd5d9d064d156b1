"""The first tokens that tell a model's behaviour, calibrated once for a model and its prompts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from obliteratus.errors import NoRefusalTokensError
from obliteratus.measure.behaviour import BEHAVIOURS
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.loaded import LoadedModel
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.settings import RunSettings
from obliteratus.store import Store, content_key, read_json, write_json
from obliteratus.verify.identity import code_fingerprint, versions, weights_fingerprint
from obliteratus.verify.verify import CALIBRATION_PROMPTS, calibrated

TOKENS_FILE = "tokens.json"


def first_tokens(model: LoadedModel, settings: RunSettings, store: Store) -> RefusalTokens:
    """Return the tokens with which ``model`` opens answers that show the behaviour of ``settings``.

    They are those of VERIFY: calibrated on the fit split of the prompts that ``settings`` name, and
    kept in ``store``.

    Raises:
        NoRefusalTokensError: no first token tells this behaviour, or not in this model.
        PromptError: its prompts cannot be had.
    """
    behaviour = BEHAVIOURS[settings.behaviour]
    fit = split(contrast_set(settings.prompts, behaviour.contrast_set)).fit
    key = content_key(
        "first-tokens",
        weights=weights_fingerprint(model),
        source=model.source.fingerprint,
        template=model.chat_template_sha256,
        behaviour=behaviour.name,
        openings=list(behaviour.openings),
        prompts=fit.sha256,
        count=CALIBRATION_PROMPTS,
        system=settings.prompts.system,
        versions=versions(),
        code=code_fingerprint(),
    )

    def compute() -> RefusalTokens:
        found, left_out = calibrated(model, fit, behaviour, system=settings.prompts.system)
        if found is None:
            raise NoRefusalTokensError(
                left_out[0].reason
                if left_out
                else f"the first token of an answer does not tell {behaviour.words.noun}"
            )
        return found

    return store.cached(key, compute, _save, _load)[0]


def _save(tokens: RefusalTokens, folder: Path) -> None:
    write_json(folder / TOKENS_FILE, asdict(tokens))


def _load(folder: Path) -> RefusalTokens:
    stored: dict[str, Any] = read_json(folder / TOKENS_FILE)
    ids, texts = tuple(stored.pop("ids")), tuple(stored.pop("texts"))
    return RefusalTokens(ids, texts, **stored)
