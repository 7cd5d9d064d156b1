"""``obliteratus methods``: the presets, and what each of them sets."""

from collections.abc import Iterator, Mapping
from typing import Any

from obliteratus.cli import options
from obliteratus.cli.render import rendering


def methods(as_json: options.Json = False) -> None:
    """List the methods, each a preset of settings, and what they set."""
    from obliteratus.pipeline.methods import methods as all_methods

    with rendering(as_json=as_json, stages=()) as screen:
        found = all_methods()
        screen.result(
            "methods",
            {
                "methods": [
                    {"name": item.name, "description": item.description, "values": item.values}
                    for item in found
                ]
            },
        )
        if as_json:
            return
        from obliteratus.cli.tables import listing

        for item in found:
            rows = [(key, str(value)) for key, value in _flat(item.values)]
            screen.say(listing(item.name, item.description, rows))
        screen.say(
            " Use one with --method NAME and change any of its values with --set KEY=VALUE.\n"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
