"""Knobs: what an extractor lets its user set, read from its own signature."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from obliteratus.directions.samples import EXTRACTORS, Extractor
from obliteratus.errors import UsageError, did_you_mean

Quantile = Annotated[float, Field(gt=0.5, le=1)]
"""The share of the values that is left alone on one side; 1 leaves all of them."""

NOT_A_KNOB = "max_rank"  # a setting that every extractor has


def extractor_of(name: str, knobs: Mapping[str, Any]) -> Extractor:
    """Return the extractor called ``name`` with ``knobs`` bound to it.

    The knobs of an extractor are its keyword-only parameters besides ``max_rank``. Their
    annotations are what is checked, so a range is a pydantic ``Field``: ``quantile:
    Annotated[float, Field(gt=0.5, le=1)] = 0.99``. A knob that is not given keeps its default.

    Raises:
        UsageError: there is no such extractor, it has no such knob, or a value is out of range.
    """
    extract = EXTRACTORS[name]
    schema = _schema(extract)
    known = tuple(schema.model_fields)
    for knob in knobs:
        if knob not in known:
            has = f"its knobs are {', '.join(known)}" if known else "it has none"
            raise UsageError(
                f"the extractor '{name}' has no knob '{knob}' ({has}).{did_you_mean(knob, known)} "
                "Take it out of distill.knobs."
            )
    try:
        values = schema.model_validate(dict(knobs))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"knob {where}={first['input']} of the extractor '{name}': {first['msg']}. Change it "
            "in distill.knobs."
        ) from error
    return partial(extract, **{knob: getattr(values, knob) for knob in known})


def _schema(extract: Callable[..., Any]) -> type[BaseModel]:
    """Return a model with one field for each knob of ``extract``."""
    hints = get_type_hints(extract, include_extras=True)
    fields: dict[str, Any] = {
        each.name: (hints[each.name], ... if each.default is Parameter.empty else each.default)
        for each in signature(extract).parameters.values()
        if each.kind is Parameter.KEYWORD_ONLY and each.name != NOT_A_KNOB
    }
    return create_model("Knobs", __config__=ConfigDict(extra="forbid"), **fields)
