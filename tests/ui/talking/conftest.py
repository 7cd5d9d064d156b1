"""Models for what talks: a refuser with an edit and directions, and one that never ends."""

import json
from pathlib import Path

import pytest

from obliteratus.edits.memory import excise
from obliteratus.edits.planner import plan
from obliteratus.models.summon import summon
from obliteratus.release.directions_file import save_directions
from obliteratus.release.save import release
from obliteratus.settings import EditSettings
from obliteratus.testing.keystone import random_directions
from obliteratus.testing.tiny import tiny_folder

EDIT_STRENGTH = 1.5


@pytest.fixture(scope="session")
def models(refuser: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The refuser, a direction of it, its edit along that direction, and a babbler.

    The edit has the record of its run; the babbler has no token at which it stops.
    """
    root = tmp_path_factory.mktemp("models")
    model = summon(str(refuser))
    directions = random_directions(model, rank=8, seed=3)
    save_directions(directions, root / "directions.safetensors")
    excise(model, plan(model, directions, EditSettings(strength=EDIT_STRENGTH)))
    release(model, root / "edited")
    records = root / "edited" / "obliteratus"
    records.mkdir(exist_ok=True)
    prompts = {name: str(refuser / f"{name}.jsonl") for name in ("harmful", "harmless")}
    source, requested = {"fingerprint": ""}, {"method": "advanced", "prompts": prompts}
    run = {"version": 1, "model": str(refuser), "source": source, "requested": requested}
    (records / "run.json").write_text(json.dumps(run))
    babbler = tiny_folder(root / "babbler", sizes={"max_position_embeddings": 8192})
    settings = babbler / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": None}))
    other = tiny_folder(root / "other", seed=1)
    return {
        "refuser": refuser,
        "directions": root / "directions.safetensors",
        "edited": root / "edited",
        "babbler": babbler,
        "other": other,
    }
