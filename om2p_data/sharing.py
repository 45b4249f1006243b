"""Data sets to and from remotes, through Minari; a shared folder is a remote too.

| remote | what it is | what it takes |
|---|---|---|
| a folder | on a shared disk | |
| `hf://<user>` | Hugging Face: `om2p/...` goes to `<user>/om2p` | extra `hf`; to upload, HF_TOKEN or `hf auth login` |
| `gs://<bucket>` | Google Cloud Storage | extra `gcs`; to upload, GOOGLE_APPLICATION_CREDENTIALS (a key file) |

Once this module is imported, Minari's own functions know `MINARI_REMOTE=folder://<path>` too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import minari
from minari.namespace import NAMESPACE_METADATA_FILENAME, namespace_hierarchy
from minari.storage import get_dataset_path, remotes
from minari.storage.remotes.cloud_storage import CloudStorage

from om2p_data import columns, dataset
from om2p_data.archive import data_files
from om2p_data.dataset import datasets_root, ensure_free
from om2p_data.errors import UserError, nearest, unknown
from om2p_data.storage import DatasetId, make_namespaces, parse_id, reason, replacing, sync, sync_folder, write_whole

_FOLDER = "folder"
_KINDS = {"hf": "hf", "gs": "gcp", "gcp": "gcp", _FOLDER: _FOLDER}  # our names and Minari's
_METADATA = "data/metadata.json"


class FolderStorage(CloudStorage):
    """A folder as a remote of Minari: data sets lie in it as they lie on every machine, without flat columns.

    A data set appears in it when it is complete, and is never overwritten.
    """

    def __init__(self, name: str, token: str | None = None) -> None:
        del token  # the disk asks for none
        self._root = Path(name)

    def upload_dataset(self, dataset_id: str) -> None:
        self._copy(get_dataset_path(dataset_id), self._root / dataset_id)

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        self._copy(self._root / dataset_id, path / dataset_id)

    def list_datasets(self, prefix: str | None = None) -> Iterable[str]:
        folders = [file.parent.parent.relative_to(self._root) for file in self._root.rglob(_METADATA)]
        return sorted(
            folder.as_posix()
            for folder in folders
            if folder.as_posix().startswith(prefix or "") and not any(part.startswith(".") for part in folder.parts)
        )

    def get_dataset_metadata(self, dataset_id: str) -> dict:
        return json.loads((self._root / dataset_id / _METADATA).read_text(encoding="utf-8"))

    def list_namespaces(self) -> Iterable[str]:
        files = self._root.rglob(NAMESPACE_METADATA_FILENAME)
        return sorted(file.parent.relative_to(self._root).as_posix() for file in files)

    def upload_namespace(self, namespace: str) -> None:
        self._copy_namespace(get_dataset_path(namespace), self._root / namespace)

    def download_namespace_metadata(self, namespace: str, path: Path) -> None:
        self._copy_namespace(self._root / namespace, path / namespace)

    def _copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            if target.exists():
                raise FileExistsError(f"{target} exists already")
            for name in data_files(source):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, partial / name)
            _sync_files(partial)

    def _copy_namespace(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        text = (source / NAMESPACE_METADATA_FILENAME).read_text(encoding="utf-8")
        write_whole(target / NAMESPACE_METADATA_FILENAME, lambda path: path.write_text(text, encoding="utf-8"))


remotes._registry[_FOLDER] = lambda: FolderStorage  # Minari has no public way to add one


def upload(dataset_id: str, remote: str, *, root: str | os.PathLike[str] | None = None) -> None:
    """Copy a data set to a remote, without its flat columns. Versions that are there are never overwritten.

    While this runs, the process's MINARI_REMOTE and MINARI_DATASETS_PATH are changed.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`.
        remote: `hf://<user>`, `gs://<bucket>` or a folder.
        root: folder of all data sets; by default Minari's.

    Raises:
        UserError: what `dataset.load` refuses, an unknown remote, a missing library or token, a data set of that id at
            the remote, or whatever the remote answers.
    """
    dataset.load(dataset_id, root)  # damaged data are not handed on
    parsed = parse_id(dataset_id)
    address = _address(remote)
    token = _token(address)
    with _one_line(f"cannot upload {dataset_id} to {remote}"), tempfile.TemporaryDirectory() as staging:
        storage = remotes.get_cloud_storage(address, token)
        if dataset_id in storage.list_datasets(prefix=dataset_id):
            free = parsed._replace(version=parsed.version + 1)
            raise UserError(f"{dataset_id} is at {remote} already, and stays as it is: upload other data as {free}")
        _stage(datasets_root(root), Path(staging), parsed)
        with _minari(Path(staging), address):
            minari.upload_dataset(dataset_id, token)  # pyright: ignore[reportArgumentType] (None: the stored token)


def download(
    dataset_id: str, remote: str, *, overwrite: bool = False, root: str | os.PathLike[str] | None = None
) -> Path:
    """Copy a data set from a remote. It appears under its id when its contents were verified by their hash.

    While this runs, the process's MINARI_REMOTE and MINARI_DATASETS_PATH are changed.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`.
        remote: `hf://<user>`, `gs://<bucket>` or a folder.
        overwrite: replace a data set of that id.
        root: folder of all data sets; by default Minari's.

    Returns:
        The data set's folder.

    Raises:
        UserError: a data set of that id exists here or not there, an unknown remote, a missing library, contents that
            are damaged, or whatever the remote answers. Nothing is left behind.
    """
    parsed = parse_id(dataset_id)
    address = _address(remote)
    ensure_free(dataset_id, overwrite, root)
    here = datasets_root(root)
    with _one_line(f"cannot download {dataset_id} from {remote}"):
        namespace = dataset_id.rpartition("/")[0]
        there = list(remotes.get_cloud_storage(address).list_datasets(prefix=namespace.split("/")[0]))
        if dataset_id not in there:
            near = nearest(dataset_id, there)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it holds {len(there)} others of this namespace"
            raise UserError(f"no data set {dataset_id} at {remote}: {hint}")
        (here / dataset_id).parent.mkdir(parents=True, exist_ok=True)
        with replacing(here / dataset_id) as partial:
            staging = partial / "staging"
            staging.mkdir()
            with _minari(staging, address):
                minari.download_dataset(dataset_id)
            arrived = staging / dataset_id
            # Columns are taken at their word, so they are never taken from others: loading rebuilds them from the data,
            # and compares the content hash on the way.
            shutil.rmtree(arrived / columns.FOLDER, ignore_errors=True)
            dataset.load(dataset_id, staging)
            for folder in (arrived / "data", arrived / columns.FOLDER):
                if folder.exists():  # data that others wrote have no columns
                    folder.rename(partial / folder.name)
            _carry_namespaces(staging, here, parsed)
            shutil.rmtree(staging)
            _sync_files(partial)
    return here / dataset_id


def _address(remote: str) -> str:
    """A remote as Minari writes it, `<kind>://<name>`."""
    kind, separator, name = remote.partition("://")
    if not separator:
        kind, name = _FOLDER, remote
    if kind not in _KINDS:
        raise unknown("kind of remote", kind, ["hf://<user>", "gs://<bucket>", "a folder"])
    if not name:
        raise UserError(f"remote {remote!r} names nothing: write hf://<user>, gs://<bucket> or a folder")
    if kind == _FOLDER:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"remote {folder} is not a folder")
        name = str(folder.resolve())
    return f"{_KINDS[kind]}://{name}"


def _token(address: str) -> str | None:
    """What proves who uploads; for Hugging Face the library finds it by itself."""
    kind = address.partition("://")[0]
    if kind == "gcp":
        token = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        if token is None:
            raise UserError("no key to upload with: set GOOGLE_APPLICATION_CREDENTIALS to the path of a key file")
        return token
    if kind == "hf":
        try:
            from huggingface_hub import get_token  # pyright: ignore[reportMissingImports] (an extra)
        except ImportError:
            raise UserError('huggingface_hub is not installed: pip install "om2p[hf]"') from None
        if get_token() is None:
            raise UserError("no token to upload with: set HF_TOKEN, or run: hf auth login")
    return None


def _stage(root: Path, staging: Path, parsed: DatasetId) -> None:
    """A tree of links that holds this data set alone, as it shall be uploaded."""
    dataset_id = str(parsed)
    for name in data_files(root / dataset_id):
        link = staging / dataset_id / name
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to((root / dataset_id / name).resolve())
        except OSError:  # not everybody may make links everywhere
            shutil.copyfile(root / dataset_id / name, link)
    _carry_namespaces(root, staging, parsed)


def _carry_namespaces(source: Path, target: Path, parsed: DatasetId) -> None:
    """Copy the namespace files of a data set that are not there yet; where there is none to copy, make one."""
    for namespace in namespace_hierarchy(str(parsed).rpartition("/")[0]):
        file, copied = (root / namespace / NAMESPACE_METADATA_FILENAME for root in (source, target))
        if file.is_file() and not copied.exists():
            shutil.copyfile(file, copied)
    make_namespaces(target, parsed)


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                sync(file)


@contextlib.contextmanager
def _minari(datasets: Path, remote: str) -> Iterator[None]:
    """Minari's folder and remote, which its functions take from the environment.

    What it prints is dropped: it names the servers of its makers, whatever the remote.
    """
    settings = {"MINARI_DATASETS_PATH": str(datasets), "MINARI_REMOTE": remote}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever a remote's library raises, said in one line."""
    try:
        yield
    except UserError:
        raise
    except BlockingIOError as error:
        raise UserError(f"{what}: another process is writing it") from error
    except Exception as error:
        raise UserError(f"{what}: {reason(error)}") from error
