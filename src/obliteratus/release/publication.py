"""What of a folder is published: files on a list, without what says where they were made.

The report and the record of the run hold what the user typed: paths, prompts, addresses. They are
not published. ``run.json`` is, made anew, where all that it holds is public (:func:`public_run`).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from obliteratus.errors import UsageError
from obliteratus.models.catalogue import catalogue
from obliteratus.models.folders import INDEX, is_text_file
from obliteratus.release.card import CARD, REPEAT
from obliteratus.release.lora import CONFIG
from obliteratus.release.save import RECORDS
from obliteratus.settings import RunSettings
from obliteratus.store import read_json
from obliteratus.store.secrets import without_secrets

TAG = "obliteratus"
LICENCES = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)(\.(txt|md))?", re.IGNORECASE)
RECORDED = re.compile(
    r"(plan|receipt|directions)(-pass\d+)?\.(json|safetensors)|undo\.safetensors|lora\.json"
)
"""What is published of the records: what was planned and done, along what, and what undoes it."""
RUN = "run.json"
WHY_NOT = {
    "report.json": "holds the prompts' settings and texts as they were given",
    "report.html": "holds the prompts' settings and texts as they were given",
    "stream.json": "holds the model as it was asked for",
    RUN: "holds a path, a prompt or an address",
}
UNLISTED = "not on the list of what is published"
UNREPEATABLE = "The run used texts or files of its maker, and its record is not given along."
LONGEST_HEADER = 1 << 24
VOCABULARY = re.compile(r"tokenizer\.(json|model.*)|vocab\..*|merges\.txt")
"""Files of the tokenizer that are the original's: their tokens may be words of any path."""


@dataclass(frozen=True)
class Item:
    """One file to be published: its path in the repository, and its content."""

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Its bytes."""
        content = self.content
        return len(content) if isinstance(content, bytes) else content.stat().st_size


@dataclass(frozen=True)
class Publication:
    """What is sent and what is not: path -> why; ``base`` is the Hub id of the original."""

    folder: Path
    items: tuple[Item, ...]
    left_out: Mapping[str, str]
    base: str | None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.size for item in self.items)


def publication(folder: Path) -> Publication:
    """Return what is published of a folder that this program wrote.

    Raises:
        UsageError: it is no such folder, has no card, or a file names a place of this machine or a
            credential.
        StorageError: a record is damaged.
    """
    if not (folder / RECORDS).is_dir():
        raise UsageError(
            f"{folder} was not written by this program: it has no folder {RECORDS}. Give what "
            "`obliterate`, `harden` or `export --to lora` wrote."
        )
    if not (folder / CARD).is_file():
        raise UsageError(f"{folder} has no {CARD}, and a model is not published without its card.")
    run = _run_of(folder)
    public = None if run is None else public_run(run)
    base = _base(folder, run)
    items: list[Item] = []
    left_out: dict[str, str] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == CARD:
            items.append(Item(name, _card(path, base, is_repeatable=public is not None)))
        elif name == f"{RECORDS}/{RUN}" and public is not None:
            items.append(Item(name, _as_json(public)))
        elif _is_listed(name):
            items.append(Item(name, path))
        else:
            left_out[name] = WHY_NOT.get(path.name, UNLISTED)
    if not any(item.path.endswith(".safetensors") and "/" not in item.path for item in items):
        raise UsageError(
            f"{folder} holds no weights (safetensors), so there is nothing to publish."
        )
    _check_private(folder, items, run)
    return Publication(folder, tuple(items), left_out, base)


def public_run(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``run.json`` with nothing that its user typed; None where it needs such a thing.

    A setting that is a text has to be a plain word, and those that name files, prompts, addresses
    or a system prompt have to be at their defaults: a record without them would repeat another run.
    What a deviation or a decision says in words is left out.
    """
    settings, defaults = run["requested"], RunSettings().model_dump(mode="json")
    source = run["source"]
    is_public = source["kind"] in ("hub", "catalogue")
    for key, value in _leaves(settings):
        if value == _at(defaults, key) or (key == "model.revision" and is_public):
            continue
        if any(key.startswith(start) for start in TYPED) or not _is_plain(value):
            return None
    name = source["identifier"] if is_public else "MODEL"
    return {
        **{key: run[key] for key in KEPT if key in run},
        "model": name,
        "source": {**source, "asked": name, "identifier": name},
        "executed": [],
        "decisions": [],
        "passes": [],
    }


KEPT = ("version", "dtype", "chat_template_sha256", "prompts", "requested", "seconds", "versions",
        "hardware")  # fmt: skip
TYPED = ("prompts.", "verify.text", "verify.judge.url", "verify.judge.model", "verify.judge.key",
         "verify.capability_files", "model.revision")  # fmt: skip
"""Settings that are typed: not public unless they are at their defaults."""
WORD = re.compile(r"[\w.,=+:\-]{0,80}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None and without_secrets(value) == value
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float)


def _leaves(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _run_of(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORDS / RUN
    return read_json(path) if path.is_file() else None


def _base(folder: Path, run: Mapping[str, Any] | None) -> str | None:
    """Return the Hub id of the model that was edited, from the card or the record of the run."""
    header, _ = _split((folder / CARD).read_text(encoding="utf-8"))
    if header.get("base_model"):
        found = header["base_model"]
        return str(found[0] if isinstance(found, list) else found)
    source = {} if run is None else run["source"]
    if source.get("kind") == "catalogue":
        return catalogue()[source["identifier"]].hub
    return source.get("identifier") if source.get("kind") == "hub" else None


def _card(path: Path, base: str | None, *, is_repeatable: bool) -> bytes:
    """Return the card with the tag and the base model, and no promise that is not kept."""
    text = path.read_text(encoding="utf-8")
    if not is_repeatable:
        text = text.replace(REPEAT, UNREPEATABLE)
    header, body = _split(text)
    tags = list(header.get("tags") or [])
    has_base = base is None or "base_model" in header
    if TAG in tags and has_base:
        return text.encode()
    header["tags"] = tags if TAG in tags else [TAG, *tags]
    if base is not None:
        header.setdefault("base_model", base)
    return f"---\n{yaml.safe_dump(header, sort_keys=True)}---\n{body}".encode()


def _split(text: str) -> tuple[dict[str, Any], str]:
    match = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    if match is None:
        return {}, text
    try:
        header = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise UsageError(f"the header of {CARD} is no YAML: {error}. Correct it.") from error
    return (header if isinstance(header, dict) else {}), match[2]


def _is_listed(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    if folder == RECORDS:
        return RECORDED.fullmatch(last) is not None
    is_weights = last.endswith(".safetensors") or last in (INDEX, CONFIG)
    return not folder and (is_weights or is_text_file(last) or bool(LICENCES.fullmatch(last)))


def _check_private(folder: Path, items: list[Item], run: Mapping[str, Any] | None) -> None:
    """Check that no text that is sent names a place of this machine, or holds a credential."""
    places = {str(Path.home()), str(folder.resolve()), str(Path.cwd())}
    if run is not None and run["source"]["kind"] not in ("hub", "catalogue"):
        places |= {str(run["source"][key]) for key in ("asked", "identifier")}
    streamed = folder / RECORDS / "stream.json"
    if streamed.is_file() and Path(name := str(read_json(streamed)["model"])).is_absolute():
        places.add(name)
    places = {each for each in places if len(each.strip("/.")) > 2 and "/" in each}
    for item in items:
        if VOCABULARY.fullmatch(item.path):
            continue
        text = _text_of(item)
        found = next((each for each in sorted(places, key=len) if each in text), None)
        if found is not None or without_secrets(text) != text:
            what = f"names {found}" if found is not None else "holds a credential"
            raise UsageError(
                f"{item.path} {what}, and it would be published. Take that out of the file and "
                "push again; nothing was sent."
            )


def _text_of(item: Item) -> str:
    """Return the text of a file, of safetensors the header."""
    if isinstance(item.content, bytes):
        return item.content.decode()
    if item.content.suffix != ".safetensors":
        return item.content.read_text(encoding="utf-8", errors="replace")
    with item.content.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return file.read(min(size, LONGEST_HEADER)).decode("utf-8", errors="replace")


def _as_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
