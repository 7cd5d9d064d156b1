"""Knobs: what an extractor lets its user set, read from the signatures of its functions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from obliteratus.errors import UsageError, did_you_mean

Quantile = Annotated[float, Field(gt=0.5, le=1)]
"""The share of the values that is left alone on one side; 1 leaves all of them."""

NOT_A_KNOB = "max_rank"  # a setting that every extractor has


def bound(
    name: str, functions: Sequence[Callable[..., Any]], knobs: Mapping[str, Any]
) -> list[Callable[..., Any]]:
    """Return the ``functions`` of the extractor called ``name``, each with those ``knobs`` it has.

    The knobs of a function are its keyword-only parameters besides ``max_rank``. Their annotations
    are what is checked, so a range is a pydantic ``Field``: ``quantile:
    Annotated[float, Field(gt=0.5, le=1)] = 0.99``. A knob that is not given keeps its default.

    Raises:
        UsageError: no function has such a knob, or a value is out of range.
    """
    fields = [_fields(function) for function in functions]
    schema = create_model(
        "Knobs",
        __config__=ConfigDict(extra="forbid"),
        **{knob: field for each in fields for knob, field in each.items()},
    )
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
    return [
        partial(function, **{knob: getattr(values, knob) for knob in each})
        for function, each in zip(functions, fields, strict=True)
    ]


def _fields(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type and default of each knob of ``function``."""
    hints = get_type_hints(function, include_extras=True)
    return {
        each.name: (hints[each.name], ... if each.default is Parameter.empty else each.default)
        for each in signature(function).parameters.values()
        if each.kind is Parameter.KEYWORD_ONLY and each.name != NOT_A_KNOB
    }
