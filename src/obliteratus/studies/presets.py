"""Ten studies that ship with the program, each with the question that it answers."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.studies.reading import YAML_SUFFIXES, read_study, study_of_text
from obliteratus.studies.schema import Study


@dataclass(frozen=True)
class Preset:
    """A study without models, and the text of its file."""

    study: Study
    text: str

    @property
    def name(self) -> str:
        """What ``study run`` takes."""
        return self.study.name


def presets() -> tuple[Preset, ...]:
    """Return every preset, those with the fewest prompts first."""
    folder = resources.files("obliteratus.studies") / "presets"
    texts = {
        file.name: file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }
    found = [Preset(study_of_text(text, f"preset {name}"), text) for name, text in texts.items()]
    return tuple(sorted(found, key=lambda preset: (preset.study.prompts, preset.name)))


def study_named(name: str) -> Study:
    """Return the study of the file ``name``, or of the preset that is called so.

    Raises:
        UsageError: there is neither, or see :func:`obliteratus.studies.reading.read_study`.
    """
    path = Path(name)
    if path.suffix in YAML_SUFFIXES or path.is_file():
        return read_study(path)
    known = {preset.name: preset.study for preset in presets()}
    if name not in known:
        raise UsageError(
            f"no preset called '{name}'.{did_you_mean(name, known)} For a file, write its name "
            "with .yaml."
        )
    return known[name]
