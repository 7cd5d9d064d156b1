"""Files arrive as they are, go on where they stopped, and stay inside their folder."""

import asyncio
from pathlib import PurePosixPath

import pytest

from obliteratus.errors import StorageError
from obliteratus.remote import transfer
from obliteratus.remote.agent import manifest
from obliteratus.remote.arrive import put_in_place
from obliteratus.remote.errors import RemoteError
from obliteratus.remote.link import Link
from obliteratus.remote.transfer import fetch, identity, send


def over(server, work):
    async def run():
        async with Link(server.address) as link, link.connection.start_sftp_client() as sftp:
            return await work(sftp)

    return asyncio.run(run())


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 5000)
    (folder / "deep" / "empty").write_bytes(b"")
    return folder


def test_a_folder_arrives_there_and_back_as_it_is(server, model, tmp_path):
    there = server.root / "model"
    over(server, lambda sftp: send(sftp, model, PurePosixPath(there)))
    assert manifest(there) == manifest(model)
    back = tmp_path / "back"
    over(server, lambda sftp: fetch(sftp, str(there), dict(manifest(there)), back))
    assert manifest(back) == manifest(model)


def test_what_arrived_in_part_is_not_sent_or_fetched_again(server, model, tmp_path, monkeypatch):
    size = (model / "weights").stat().st_size
    there = server.root / "model"
    there.mkdir(parents=True)
    (there / "weights.part").write_bytes((model / "weights").read_bytes()[: size - 100])
    monkeypatch.setattr(transfer, "BLOCK", 64)
    over(server, lambda sftp: send(sftp, model, PurePosixPath(there)))
    assert manifest(there) == manifest(model)

    back = tmp_path / "back"
    back.mkdir()
    (back / "weights.part").write_bytes((model / "weights").read_bytes()[: size - 100])
    over(server, lambda sftp: fetch(sftp, str(there), dict(manifest(there)), back))
    assert manifest(back) == manifest(model)


def test_a_file_that_arrives_otherwise_is_an_error_and_leaves_nothing(server, model, tmp_path):
    listed = dict(manifest(model))
    (model / "weights").write_bytes(b"x" * (model / "weights").stat().st_size)
    with pytest.raises(RemoteError, match="did not arrive as it is there"):
        over(server, lambda sftp: fetch(sftp, str(model), listed, tmp_path / "back"))
    assert not (tmp_path / "back" / "weights").exists()
    assert not (tmp_path / "back" / "weights.part").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", ""])
def test_a_machine_cannot_write_outside_of_the_folder(server, tmp_path, name):
    with pytest.raises(RemoteError, match="outside of its folder"):
        over(server, lambda sftp: fetch(sftp, "/tmp", {name: [1, "0"]}, tmp_path / "back"))


def test_the_name_of_what_is_sent_depends_on_every_byte_and_name(model):
    first = identity(model)
    (model / "deep" / "empty").rename(model / "deep" / "other")
    second = identity(model)
    (model / "weights").write_bytes(b"")
    assert len({first, second, identity(model)}) == 3


def test_new_outputs_go_beside_older_ones(tmp_path):
    arrived, target = tmp_path / "arrived", tmp_path / "target"
    (arrived / "out" / "new").mkdir(parents=True)
    (arrived / "out" / "new" / "file").touch()
    (target / "out" / "old").mkdir(parents=True)
    assert put_in_place(arrived, target, force=False) == [target / "out" / "new"]
    assert (target / "out" / "new" / "file").exists()
    assert (target / "out" / "old").exists()
    assert not arrived.exists()


def test_an_output_is_replaced_only_by_force_and_then_whole(tmp_path):
    arrived, target = tmp_path / "arrived", tmp_path / "target"
    (arrived / "out" / "same").mkdir(parents=True)
    (arrived / "out" / "same" / "new").touch()
    (target / "out" / "same").mkdir(parents=True)
    (target / "out" / "same" / "old").touch()
    with pytest.raises(StorageError, match="already exists here"):
        put_in_place(arrived, target, force=False)
    assert (arrived / "out" / "same" / "new").exists()
    put_in_place(arrived, target, force=True)
    assert [path.name for path in (target / "out" / "same").iterdir()] == ["new"]
