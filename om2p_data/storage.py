"""Where data sets lie and how a folder appears there: complete, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from om2p_data.errors import UserError

if sys.platform != "win32":
    import fcntl

NAMESPACE = "om2p"
_NAMESPACE_FILE = "namespace_metadata.json"  # Minari's name for it
ID_GRAMMAR = "<namespace>/<task>/<tier>-v<N>"
_PART = "[-_A-Za-z0-9]{2,}"  # Minari refuses names of one letter
_ID = re.compile(
    rf"(?:(?P<namespace>{_PART}(?:/{_PART})*)/)?(?:(?P<task>{_PART})/)?(?P<tier>{_PART})-v(?P<version>0|[1-9][0-9]*)"
)


class DatasetId(NamedTuple):
    """The parts of a data set id; namespace and task are empty where a foreign id has fewer parts."""

    namespace: str
    task: str
    tier: str
    version: int

    def __str__(self) -> str:
        return "/".join(part for part in (self.namespace, self.task, f"{self.tier}-v{self.version}") if part)


def parse_id(dataset_id: str) -> DatasetId:
    """The parts of an id.

    Raises:
        UserError: not an id as Minari has them.
    """
    match = _ID.fullmatch(dataset_id)
    if match is None:
        raise UserError(
            f"malformed data set id {dataset_id!r}: ids read {ID_GRAMMAR}, with two or more of A-Z a-z 0-9 - _ in a "
            f"part, e.g. {NAMESPACE}/halfcheetah-2x3/medium-v0"
        )
    namespace, task = match["namespace"] or "", match["task"] or ""
    if namespace and not task:  # of two parts, the first is the task
        namespace, _, task = namespace.rpartition("/")
    return DatasetId(namespace, task, match["tier"], int(match["version"]))


def datasets_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all data sets: `root`, or the environment's MINARI_DATASETS_PATH, or Minari's default.

    Raises:
        UserError: Minari's folder does not exist and cannot be made.
    """
    if root is not None:
        return Path(root).expanduser()
    try:
        from minari.storage import get_dataset_path  # half a second, which policy files need not pay

        return get_dataset_path()
    except OSError as error:
        raise UserError(f"cannot make the data set folder: {reason(error)} (MINARI_DATASETS_PATH sets it)") from error


def make_namespaces(root: Path, dataset_id: DatasetId) -> Path:
    """The folder in which a data set lies, with the namespace files that Minari needs to share it.

    Raises:
        OSError: a folder cannot be written.
    """
    folder = (root / str(dataset_id)).parent
    folder.mkdir(parents=True, exist_ok=True)
    for namespace in (folder, *folder.parents):
        if namespace == root:
            break
        file = namespace / _NAMESPACE_FILE
        if not file.exists():
            partial = file.with_name(f".{file.name}.{os.getpid()}")
            partial.write_text(json.dumps({"description": "multi-agent offline data sets"}), encoding="utf-8")
            partial.replace(file)
    return folder


@contextlib.contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A hidden folder beside `final`, to be filled; it takes `final`'s place when the block ends without an error.

    Killed at any moment, it leaves under the final name what was there before (after `restore`, if it was killed
    between the two renames of the swap) or the complete new folder. Minari does not look into hidden folders, and the
    next call removes what a killed one left. Files are to be synced by whoever writes them.

    Raises:
        BlockingIOError: another process is filling the same folder.
        OSError: the folder cannot be written; everything written is removed.
    """
    partial = _partial(final)
    partial.mkdir(exist_ok=True)
    with locked(partial, wait=False):
        try:
            for left in partial.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
            sync_folder(partial)
            _swap(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def restore(final: Path) -> None:
    """Bring back a folder whose replacement was killed between the two renames that swap old and new.

    Raises:
        OSError: there is such a folder and it cannot be renamed.
    """
    if final.exists() or not _replaced(final).exists():
        return
    partial = _partial(final)
    # A writer that is alive holds the lock and is about to finish the swap by itself.
    with locked(partial, wait=True) if partial.exists() else contextlib.nullcontext():
        _bring_back(final)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, and rename it when it is on the disk: no half-written file bears the name.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    with temporary.open("rb") as file:
        sync(file)
    temporary.replace(path)


def ensure_writable(folder: Path) -> None:
    """Find out before a long run whether its results can be written to a folder, which is made if there is none.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {reason(error)}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: it is not a folder that you may write to")


def sync(file: IO) -> None:
    """Make sure that what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk, where the system can do that."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """Why an operation failed, on one line; HDF5 hides the system's reason in a page of text."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    from_system = re.search(r"error message = '([^']+)'", str(error))
    return from_system[1] if from_system else (str(error) or type(error).__name__).splitlines()[0]


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _bring_back(final: Path) -> None:
    if not final.exists() and _replaced(final).exists():
        _replaced(final).rename(final)


def _swap(partial: Path, final: Path) -> None:
    replaced = _replaced(final)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    try:
        partial.rename(final)
    except OSError:
        _bring_back(final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process however it ends; without one where there are no locks."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # some network file systems lock no folders; the last writer wins there
        yield
    finally:
        os.close(descriptor)
