"""From what a user types to a folder with configuration, tokenizer and safetensors weights.

In this order: a catalogue name, a path ending in ``.gguf``, an existing folder, a Hub id. A folder
that is called like a catalogue entry is given as ``./NAME``. See docs/design/sources.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from obliteratus.errors import UsageError, did_you_mean
from obliteratus.events import Note, emit
from obliteratus.models import hub
from obliteratus.models.adapters import adapter_sha256, merge_adapter
from obliteratus.models.catalogue import CatalogueEntry, catalogue, catalogue_entry
from obliteratus.models.checkpoint import read_checkpoint, sample
from obliteratus.models.folders import (
    combined,
    fingerprint,
    read_config,
    weight_files,
)
from obliteratus.models.gguf import CONVERSION, gguf_folder, gguf_license
from obliteratus.models.loaded import ModelSource, SourceKind
from obliteratus.models.quiet import quiet
from obliteratus.models.wheels import wheel_files
from obliteratus.settings import ModelSettings
from obliteratus.store import Store, content_key

DEFAULTS = ModelSettings()
HUB_ID_PARTS = 2  # organisation/name


@dataclass(frozen=True)
class ResolvedModel:
    """A model as a local folder, and where it came from."""

    folder: Path
    source: ModelSource


def resolve(
    name: str,
    settings: ModelSettings = DEFAULTS,
    *,
    store: Store | None = None,
    check: Callable[[Path], object] | None = None,
    hashes: bool = True,
) -> ResolvedModel:
    """Return the folder of the model that ``name`` means, downloading or converting it if needed.

    Without ``hashes`` the bytes of a local folder are not all read: its fingerprint is then made
    of the sample.

    ``check`` is called with a folder that has the configuration and perhaps not yet the weights: it
    may raise to say, before a long download, that the model cannot be used.

    Raises:
        UsageError: ``name`` means nothing, or ``settings.revision`` is given without a Hub id.
        ModelSourceError: the model cannot be obtained or is damaged.
        StorageError: the disk is full.
    """
    kind = _kind(name)
    if kind != "hub" and settings.revision is not None:
        raise UsageError(
            f"--revision applies to Hub ids, and '{name}' is not one ({kind}). Leave it out, or "
            "give the Hub id."
        )
    path = Path(name).expanduser()
    store, check = store or Store(), check or _unchecked
    if kind == "catalogue":
        if path.is_dir():
            emit(Note(f"'{name}' is the catalogue's model; for the folder write ./{name}."))
        found = _catalogue_model(catalogue()[name], store, check)
    elif kind == "gguf":
        found = _gguf_model(name, path, store, check)
    elif kind == "folder":
        found = _folder_model(name, path, settings, check, hashes=hashes)
    else:
        found = _hub_model(name, name, settings, check)
    seen = sample(read_checkpoint(found.folder))
    source = replace(found.source, sample=seen)
    if not source.fingerprint:
        source = replace(source, fingerprint=combined("sample", seen))
    return ResolvedModel(found.folder, source)


def configuration_folder(
    name: str, settings: ModelSettings = DEFAULTS, *, store: Store | None = None
) -> Path:
    """Return a folder with the configuration of ``name``, without fetching a Hub model's weights.

    Raises:
        UsageError, ModelSourceError, StorageError: see :func:`resolve`.
    """
    kind = _kind(name)
    if kind == "folder":
        read_config(Path(name).expanduser())
        return Path(name).expanduser()
    if kind == "hub":
        found = hub.find(name, settings.revision)
        return hub.fetch_texts(found, code=settings.trust_remote_code)
    return resolve(name, settings, store=store).folder


def catalogue_folder(name: str, *, store: Store | None = None) -> Path:
    """Return the folder of the catalogue model ``name``; this is how ``minilm`` is reached.

    Raises:
        UsageError: the catalogue has no such model.
        ModelSourceError: it cannot be obtained.
        StorageError: the disk is full.
    """
    return _catalogue_model(catalogue_entry(name), store or Store(), _unchecked).folder


def _unchecked(_folder: Path) -> None:
    return


def _kind(name: str) -> SourceKind:
    """Say what ``name`` means.

    Raises:
        UsageError: it is no catalogue name, file, folder or possible Hub id.
    """
    path = Path(name).expanduser()
    if name in catalogue():
        return "catalogue"
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"there is no file {path}. Check the path of the .gguf file.")
        return "gguf"
    if path.is_dir():
        return "folder"
    if path.exists():
        raise UsageError(f"{path} is a file. Give a model folder, a .gguf file or a Hub id.")
    if name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name:
        raise UsageError(f"there is no folder {path}. Check the path, or give a Hub id.")
    if len(name.split("/")) != HUB_ID_PARTS:
        raise UsageError(
            f"no model called '{name}'.{did_you_mean(name, catalogue())} A Hub id has the form "
            "organisation/name; a folder is given by its path."
        )
    return "hub"


def _folder_model(
    asked: str,
    path: Path,
    settings: ModelSettings,
    check: Callable[[Path], object],
    *,
    hashes: bool,
) -> ResolvedModel:
    read_config(path)
    check(path)
    weights = weight_files(path)
    return ResolvedModel(
        path,
        ModelSource(
            asked=asked,
            kind="folder",
            identifier=str(path.resolve()),
            fingerprint=(
                fingerprint(path, weights, code=settings.trust_remote_code) if hashes else ""
            ),
        ),
    )


def _gguf_model(
    asked: str, path: Path, store: Store, check: Callable[[Path], object]
) -> ResolvedModel:
    folder, sha256 = gguf_folder(path, store)
    check(folder)
    return ResolvedModel(
        folder,
        ModelSource(
            asked=asked,
            kind="gguf",
            identifier=str(path.resolve()),
            fingerprint=_gguf_fingerprint(sha256),
            sha256=sha256,
            license=gguf_license(folder),
        ),
    )


def _hub_model(
    asked: str, repo: str, settings: ModelSettings, check: Callable[[Path], object]
) -> ResolvedModel:
    found = hub.find(repo, settings.revision)
    folder = hub.fetch_texts(found, code=settings.trust_remote_code)
    read_config(folder)
    check(folder)
    hub.fetch_weights(found)
    weight_files(folder)
    return ResolvedModel(
        folder,
        ModelSource(
            asked=asked,
            kind="hub",
            identifier=repo,
            fingerprint=combined("hub", repo, found.commit),
            revision=found.commit,
            license=found.license,
        ),
    )


def _catalogue_model(
    entry: CatalogueEntry, store: Store, check: Callable[[Path], object]
) -> ResolvedModel:
    if entry.base is not None:
        return _merged_model(entry, store, check)
    if entry.revision is not None:
        settings = ModelSettings(revision=entry.revision)
        found = _hub_model(entry.name, entry.hub, settings, check)
        pinned = replace(
            found.source, kind="catalogue", identifier=entry.name, license=entry.license
        )
        return ResolvedModel(found.folder, pinned)
    folder = wheel_files(entry, store)
    source = ModelSource(
        asked=entry.name,
        kind="catalogue",
        identifier=entry.name,
        fingerprint=combined("files", *(f"{k} {v.sha256}" for k, v in entry.files.items())),
        sha256=entry.files["model.safetensors"].sha256 if entry.gguf is None else entry.gguf.sha256,
        license=entry.license,
    )
    if entry.gguf is None:
        check(folder)
        return ResolvedModel(folder, source)
    folder, sha256 = gguf_folder(folder / "model.gguf", store, sha256=entry.gguf.sha256)
    check(folder)
    emit(
        Note(
            f"{entry.name}: weights of {entry.wheels_in_words}, dequantised to float32; those of "
            f"{entry.hub} on the Hub differ slightly."
        )
    )
    return ResolvedModel(folder, replace(source, fingerprint=_gguf_fingerprint(sha256)))


def _merged_model(
    entry: CatalogueEntry, store: Store, check: Callable[[Path], object]
) -> ResolvedModel:
    """Return base + adapter as a folder of its own, merged in float32 at the first use."""
    assert entry.base is not None
    assert entry.adapter_folder is not None
    hashes = adapter_sha256(entry.adapter_folder)
    base = _catalogue_model(catalogue()[entry.base], store, check)
    key = content_key("merged", base=base.folder.name, adapter=hashes)
    if store.find(key) is None:
        emit(Note(f"{entry.name}: merging its adapter into {entry.base} (once; cached)."))
        with store.write(key) as work:
            _write_merged(base.folder, entry.adapter_folder, work)
    source = replace(
        base.source,
        asked=entry.name,
        identifier=entry.name,
        fingerprint=combined("merged", base.source.fingerprint, *hashes),
        license=entry.license,
    )
    return ResolvedModel(store.root / key, source)


def _write_merged(base: Path, adapter: Path, work: Path) -> None:
    with quiet():
        module = AutoModelForCausalLM.from_pretrained(
            base, dtype="float32", local_files_only=True, use_safetensors=True
        )
        merge_adapter(module, adapter)
        module.config.name_or_path = ""
        module.save_pretrained(work)
        AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(work)


def _gguf_fingerprint(sha256: str) -> str:
    return combined("gguf", sha256, str(CONVERSION))
