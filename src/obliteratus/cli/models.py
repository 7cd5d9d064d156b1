"""``obliteratus models``: the catalogue."""

from obliteratus.cli import options
from obliteratus.cli.render import rendering


def models(as_json: options.Json = False) -> None:
    """List the models that are known by a short name."""
    with rendering(as_json=as_json, stages=()) as screen:
        from obliteratus.models.catalogue import catalogue

        entries = [entry for entry in catalogue().values() if entry.kind == "causal"]
        screen.result("models", {"models": [entry.model_dump(mode="json") for entry in entries]})
        if as_json:
            return
        from obliteratus.cli.tables import listing

        for entry in entries:
            rows = [("original", entry.hub), ("licence", entry.license)]
            screen.say(listing(entry.name, entry.summary, rows))
        screen.say(" Any Hub id, local folder or .gguf file of a supported family works as well.\n")
