"""Data sets on their way to others: archives, and remotes through Minari."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import pytest
from minari.storage import remotes
from typer.testing import CliRunner

from cli.data import app
from om2p_data import archive, dataset, sharing
from om2p_data.errors import UserError

from .test_any_team import Foreign, stock_dataset
from .test_dataset import CN_EPISODES, CN_ID, HC_EPISODES, HC_ID, assert_same, change_a_value, write


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "datasets"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another machine's folder of data sets."""
    return tmp_path / "other"


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


# Archives


@pytest.mark.parametrize(("dataset_id", "episodes"), [(CN_ID, CN_EPISODES), (HC_ID, HC_EPISODES)])
def test_an_archive_carries_a_data_set(dataset_id: str, episodes, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(dataset_id, episodes)
    path = archive.pack(dataset_id, progress=False)
    assert path.name == "-".join(dataset_id.split("/")[1:]) + ".tar.gz"
    with tarfile.open(path) as packed:
        assert packed.getnames() == ["manifest.json", "data/main_data.hdf5", "data/metadata.json"]
    assert archive.unpack(path, root=other, progress=False) == dataset_id
    for name in ("main_data.hdf5", "metadata.json"):
        assert (other / dataset_id / "data" / name).read_bytes() == (folder / "data" / name).read_bytes()
    assert not (other / dataset_id / "flat").exists()
    assert not hidden(other)
    assert_same(dataset.load(dataset_id, other).episodes, episodes)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(other))
    assert minari.load_dataset(dataset_id).total_steps == episodes.num_transitions
    assert list(minari.list_local_datasets()) == [dataset_id]


def test_an_archive_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    write()
    first = archive.pack(CN_ID, progress=False).read_bytes()
    assert first[4:8] == bytes(4)  # gzip's time stamp
    copied = archive.pack(CN_ID, tmp_path / "new" / "elsewhere.tar.gz", progress=False)
    assert copied.read_bytes() == first
    assert not hidden(copied.parent)
    with pytest.raises(UserError, match=r"elsewhere\.tar\.gz exists already: overwrite it"):
        archive.pack(CN_ID, copied, progress=False)
    archive.pack(CN_ID, copied, overwrite=True, progress=False)


def test_damaged_data_are_not_packed(tmp_path: Path) -> None:
    folder = write()
    shutil.rmtree(folder / "flat")
    change_a_value(folder)
    with pytest.raises(UserError, match="was changed after it was written"):
        archive.pack(CN_ID, tmp_path / "x.tar.gz", progress=False)
    assert not (tmp_path / "x.tar.gz").exists()


def test_what_is_there_stays_until_the_new_one_is_verified(tmp_path: Path) -> None:
    write(episodes=CN_EPISODES.select([0, 1]))
    path = archive.pack(CN_ID, progress=False)
    write(overwrite=True)
    with pytest.raises(UserError, match=f"{CN_ID} exists already"):
        archive.unpack(path, progress=False)
    damaged = tmp_path / "damaged.tar.gz"
    rewrite(path, damaged, change=lambda members: members.pop())
    with pytest.raises(UserError, match=r"data/metadata\.json is missing"):
        archive.unpack(damaged, overwrite=True, progress=False)
    assert dataset.load(CN_ID).episodes.num_episodes == 7
    archive.unpack(path, overwrite=True, progress=False)
    assert dataset.load(CN_ID).episodes.num_episodes == 2


Members = list[tuple[tarfile.TarInfo, bytes]]


def rewrite(source: Path, target: Path, change: Callable[[Members], object]) -> None:
    """The archive again, with other members."""
    members: Members = []
    with tarfile.open(source) as packed:
        for member in packed:
            file = packed.extractfile(member)
            assert file is not None
            members.append((member, file.read()))
    change(members)
    with tarfile.open(target, "w:gz") as packed:
        for member, content in members:
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


def edit_manifest(members: Members, **changes: Any) -> None:
    manifest = json.loads(members[0][1]) | changes
    members[0] = members[0][0], json.dumps(manifest).encode()


def add_file(members: Members, name: str, listed: bool, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    content = b"" if link else b"x"
    members.append((member, content))
    if listed:
        files = json.loads(members[0][1])["files"]
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        edit_manifest(members, files=files | {name: entry})


def flip_a_byte(members: Members) -> None:
    member, content = members[1]
    members[1] = member, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def other_metadata(members: Members, **changes: Any) -> None:
    """A metadata.json of other contents whose checksum is right."""
    content = json.dumps(json.loads(members[2][1]) | changes).encode()
    members[2] = members[2][0], content
    files = json.loads(members[0][1])["files"]
    files["data/metadata.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(members, files=files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip_a_byte, r"the checksum of data/main_data\.hdf5 is wrong"),
        (lambda m: m.pop(0), "does not begin with a manifest"),
        (lambda m: m.reverse(), "does not begin with a manifest"),
        (lambda m: m.clear(), "does not begin with a manifest"),
        (lambda m: m.__setitem__(0, (m[0][0], b"[1]")), "is not an archive that om2p-data pack wrote"),
        (lambda m: m.__setitem__(0, (m[0][0], b"\xff")), "is not an archive that om2p-data pack wrote"),
        (lambda m: m.__setitem__(1, (m[1][0], b"x" + m[1][1])), "bytes instead of"),
        (lambda m: m.append(m[1]), "is not one of the plain files that its manifest lists"),
        (lambda m: edit_manifest(m, om2p_archive="9.0"), "has om2p_archive '9.0'"),
        (lambda m: edit_manifest(m, dataset_id="../../x"), "malformed data set id"),
        (lambda m: edit_manifest(m, dataset_id=CN_ID.replace("v0", "v1")), "belongs to .*v0.*where .*v1 should be"),
        (lambda m: edit_manifest(m, content_hash="00"), "name different contents"),
        (lambda m: other_metadata(m, om2p_schema="9.0"), r"has om2p_schema '9\.0'"),
        (lambda m: add_file(m, "data/x.txt", listed=False), r"'data/x\.txt' is not one of the plain files"),
        (lambda m: add_file(m, "../x", listed=True), r"lists a file '\.\./x', which lies outside"),
        (lambda m: add_file(m, "data/../../x", listed=True), "which lies outside data/"),
        (lambda m: add_file(m, "/tmp/x", listed=True), "which lies outside data/"),
        (lambda m: add_file(m, "data/.x", listed=True), "which lies outside data/"),
        (lambda m: add_file(m, "flat/obs.npy", listed=True), "which lies outside data/"),
        (lambda m: add_file(m, "data/x", True, tarfile.SYMTYPE, "/etc/passwd"), "'data/x' is not one of the plain"),
        (lambda m: add_file(m, "data/x", True, tarfile.LNKTYPE, "/etc/passwd"), "'data/x' is not one of the plain"),
        (lambda m: add_file(m, "data/x", True, tarfile.FIFOTYPE), "'data/x' is not one of the plain"),
    ],
)
def test_archives_that_are_refused(
    change: Callable[[Members], object], message: str, tmp_path: Path, other: Path
) -> None:
    write()
    bad = tmp_path / "bad.tar.gz"
    rewrite(archive.pack(CN_ID, progress=False), bad, change)
    with pytest.raises(UserError, match=message) as caught:
        archive.unpack(bad, root=other, progress=False)
    assert "\n" not in str(caught.value)
    assert not list(other.rglob("*.hdf5"))
    assert not hidden(other)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_truncated_archives(kept: float, tmp_path: Path, other: Path) -> None:
    write()
    whole = archive.pack(CN_ID, progress=False).read_bytes()
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(UserError, match=r"cannot unpack .*bad\.tar\.gz|is not an archive") as caught:
        archive.unpack(bad, root=other, progress=False)
    assert "\n" not in str(caught.value)
    assert not list(other.rglob("*.hdf5"))


@pytest.mark.parametrize(
    "content",
    [b"no archive at all", gzip.compress(b"no tar", mtime=0), gzip.compress(b"", mtime=0)[:-9] + b"\0" * 9],
    ids=["plain text", "no tar in it", "broken checksum"],
)
def test_files_that_are_no_archives(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.tar\.gz") as caught:
        archive.unpack(tmp_path / "bad.tar.gz", progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        archive.unpack(tmp_path / "absent.tar.gz", progress=False)


# Remotes


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def test_a_folder_as_a_remote(root: Path, shared: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    write(HC_ID, HC_EPISODES)
    (root / "om2p" / "namespace_metadata.json").write_text('{"description": "mine"}')
    for dataset_id in (CN_ID, HC_ID):
        sharing.upload(dataset_id, str(shared))
        assert not (shared / dataset_id / "flat").exists()
    assert sharing.download(CN_ID, str(shared), root=other) == other / CN_ID
    assert not hidden(other)
    assert not hidden(shared)
    assert_same(dataset.load(CN_ID, other).episodes, CN_EPISODES)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(other))
    assert list(minari.list_local_datasets()) == [CN_ID]
    assert minari.load_dataset(CN_ID)[0].actions["agent_0"].shape == (25, 2)
    assert minari.namespace.get_namespace_metadata("om2p") == {"description": "mine"}
    # Minari's own functions know the folder too
    monkeypatch.setenv("MINARI_REMOTE", f"folder://{shared}")
    assert list(minari.list_remote_datasets()) == [CN_ID, HC_ID]
    minari.download_dataset(HC_ID)
    assert_same(dataset.load(HC_ID).episodes, HC_EPISODES)


def test_the_environment_is_as_before(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    folder = write()
    sharing.upload(CN_ID, str(shared))
    assert dataset.datasets_root() / CN_ID == folder
    assert "MINARI_REMOTE" not in os.environ


def test_versions_at_a_remote_stay(shared: Path) -> None:
    write()
    sharing.upload(CN_ID, str(shared))
    before = (shared / CN_ID / "data" / "main_data.hdf5").read_bytes()
    write(episodes=CN_EPISODES.select([0, 1]), overwrite=True)
    with pytest.raises(UserError, match=r"is at .* already, and stays as it is: upload other data as .*-v1$"):
        sharing.upload(CN_ID, str(shared))
    with pytest.raises(FileExistsError):
        sharing.FolderStorage(str(shared)).upload_dataset(CN_ID)
    assert (shared / CN_ID / "data" / "main_data.hdf5").read_bytes() == before


def test_a_damaged_download_leaves_what_was_there(shared: Path, other: Path) -> None:
    write()
    sharing.upload(CN_ID, str(shared))
    change_a_value(shared / CN_ID)
    with pytest.raises(UserError, match="was changed after it was written"):
        sharing.download(CN_ID, str(shared), root=other)
    assert not (other / CN_ID).exists()
    assert not hidden(other)
    with pytest.raises(UserError, match="exists already"):
        sharing.download(CN_ID, str(shared))
    with pytest.raises(UserError, match="was changed after it was written"):
        sharing.download(CN_ID, str(shared), overwrite=True)
    assert_same(dataset.load(CN_ID).episodes, CN_EPISODES)


class WholeFolders(sharing.FolderStorage):
    """As other remotes do, it brings whatever lies there."""

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        shutil.copytree(self._root / dataset_id, path / dataset_id)


def test_columns_of_others_are_not_trusted(shared: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write()
    sharing.upload(CN_ID, str(shared))
    shutil.copytree(folder / "flat", shared / CN_ID / "flat")
    rewards = shared / CN_ID / "flat" / "rewards.npy"
    content = rewards.read_bytes()
    rewards.write_bytes(content[:-4] + b"\0\0\x80?")  # one reward becomes 1.0
    monkeypatch.setitem(remotes._registry, "folder", lambda: WholeFolders)
    sharing.download(CN_ID, str(shared), root=other)
    assert_same(dataset.load(CN_ID, other).episodes, CN_EPISODES)


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        ("ftp://somewhere", "unknown kind of remote 'ftp'"),
        ("hf://", "names nothing"),
        ("absent", "remote absent is not a folder"),
        ("gs://bucket", "set GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_remotes_that_are_refused(remote: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    write()
    with pytest.raises(UserError, match=message) as caught:
        sharing.upload(CN_ID, remote)
    assert "\n" not in str(caught.value)


def test_hugging_face_without_library_or_token(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "minari.storage.remotes.huggingface", raising=False)
    with pytest.raises(UserError, match=r'huggingface_hub is not installed: pip install "om2p\[hf\]"'):
        sharing.upload(CN_ID, "hf://somebody")
    with pytest.raises(UserError, match="huggingface_hub is not installed") as caught:
        sharing.download(CN_ID.replace("v0", "v1"), "hf://somebody")
    assert "\n" not in str(caught.value)
    without_token = types.ModuleType("huggingface_hub")
    without_token.get_token = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "huggingface_hub", without_token)
    with pytest.raises(UserError, match="set HF_TOKEN, or run: hf auth login"):
        sharing.upload(CN_ID, "hf://somebody")


def test_ids_that_a_remote_does_not_hold(shared: Path) -> None:
    write()
    sharing.upload(CN_ID, str(shared))
    with pytest.raises(UserError, match=f"no data set .*medium-replai-v0 at {shared}: did you mean {CN_ID}"):
        sharing.download(CN_ID.replace("replay", "replai"), str(shared))


def test_data_sets_of_others_travel_too(root: Path, shared: Path, other: Path) -> None:
    dataset_id = "lab/twins/hand-v1"
    stock_dataset(dataset_id, Foreign())
    expected = dataset.load(dataset_id).episodes
    path = archive.pack(dataset_id, progress=False)
    assert path.name == "twins-hand-v1.tar.gz"
    assert archive.unpack(path, root=other, progress=False) == dataset_id
    assert_same(dataset.load(dataset_id, other).episodes, expected)
    sharing.upload(dataset_id, str(shared))
    shutil.rmtree(root / dataset_id)
    sharing.download(dataset_id, str(shared))
    assert_same(dataset.load(dataset_id).episodes, expected)
    assert not hidden(root)


# The command line


def test_commands(root: Path, shared: Path, other: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    write()
    assert "MB" in run("pack", CN_ID, "--quiet")
    packed = "cooperative-navigation-medium-replay-v0.tar.gz"
    assert CN_ID in run("unpack", packed, "--root", str(other), "--quiet")
    assert "exists" not in run("unpack", packed, "--root", str(other), "--overwrite", "--quiet")
    run("upload", CN_ID, "--remote", str(shared), "--root", str(other))
    run("download", CN_ID, "--remote", str(shared), "--overwrite")
    assert_same(dataset.load(CN_ID).episodes, CN_EPISODES)
