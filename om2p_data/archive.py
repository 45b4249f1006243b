"""A data set as one file: a compressed tar archive that begins with the checksums of all that follows.

It carries what Minari reads (`data/`) and leaves out the flat columns, which are rebuilt from it. What is unpacked
cannot run code, cannot land elsewhere, and bears its name only after every byte was verified.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from om2p_data import dataset, metadata
from om2p_data.dataset import datasets_root, ensure_free
from om2p_data.errors import UserError
from om2p_data.storage import make_namespaces, parse_id, reason, replacing, sync, sync_folder, write_whole

SCHEMA = "1.0"
_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 1 << 20  # more is no manifest
_BLOCK = 1 << 20  # bytes
# Short HDF5 episodes have many headers, which shrink: Cooperative Navigation to 59% at 50 MB/s. Level 6 gives 58% at
# 36 MB/s, and zstd 58% at 350 MB/s, which is not worth a library that not everybody has.
_GZIP_LEVEL = 1
_FILE_NAME = re.compile(r"data(/[A-Za-z0-9][-_.A-Za-z0-9]*)+")


def pack(
    dataset_id: str,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Write a data set into one file, a .tar.gz that begins with a manifest of SHA-256 checksums.

    The same data set gives the same bytes, wherever the same zlib compresses it.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`.
        out: the file; by default `<task>-<tier>-v<N>.tar.gz` in the current folder.
        overwrite: replace a file of that name.
        root: folder of all data sets; by default Minari's.
        progress: show a bar on a terminal.

    Raises:
        UserError: what `dataset.load` refuses, a file that exists already or cannot be written.
    """
    content_hash = dataset.load(dataset_id, root).metadata.get("content_hash")  # damaged data are not handed on
    folder = datasets_root(root) / dataset_id
    path = Path(out) if out is not None else Path("-".join(dataset_id.split("/")[-2:]) + ".tar.gz")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: overwrite it or choose another name")
    try:
        files = data_files(folder)
        with _bar("packing", 2 * sum((folder / name).stat().st_size for name in files), progress) as bar:
            entries = {name: _checksum(folder / name, bar) for name in files}
            manifest = {
                "om2p_archive": SCHEMA,
                "dataset_id": dataset_id,
                "content_hash": content_hash,
                "files": entries,
            }
            text = json.dumps(manifest, indent=1).encode()

            def fill(temporary: Path) -> None:
                # Time stamps would make two archives of one data set differ.
                with (
                    temporary.open("wb") as plain,
                    gzip.GzipFile("", "wb", _GZIP_LEVEL, plain, mtime=0) as packed,
                    tarfile.TarFile(
                        fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_BLOCK
                    ) as archive,
                ):
                    _add(archive, _MANIFEST, len(text), io.BytesIO(text))
                    for name, entry in entries.items():
                        with (folder / name).open("rb") as file:
                            _add(archive, name, entry["bytes"], file)
                        bar.update(entry["bytes"])

            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, fill)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    return path


def unpack(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> str:
    """The inverse of `pack`: the data set appears under its id when every file of it was verified.

    Args:
        path: the archive.
        overwrite: replace a data set of the same id.
        root: folder of all data sets; by default Minari's.
        progress: show a bar on a terminal.

    Returns:
        The data set's id.

    Raises:
        UserError: the archive cannot be read, is damaged, is none of ours, or holds anything but the plain files that
            its manifest lists; a data set of that id is there already. Nothing is left behind.
    """
    path = Path(path)
    try:
        with tarfile.open(path, "r:gz") as archive:
            manifest = _read_manifest(archive, path)
            dataset_id, entries = manifest["dataset_id"], manifest["files"]
            parsed = parse_id(dataset_id)
            ensure_free(dataset_id, overwrite, root)
            make_namespaces(datasets_root(root), parsed)
            with replacing(datasets_root(root) / dataset_id) as partial:
                _check_space(partial, entries, dataset_id)
                with _bar("unpacking", sum(entry["bytes"] for entry in entries.values()), progress) as bar:
                    _extract(archive, entries, partial, path, bar)
                if metadata.read(partial, parsed).get("content_hash") != manifest["content_hash"]:
                    raise UserError(f"{path} is damaged: its manifest and its metadata.json name different contents")
    except BlockingIOError as error:
        raise UserError(f"cannot unpack {path}: another process is writing the same data set") from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"cannot unpack {path}: {reason(error)}") from error
    return dataset_id


def data_files(folder: Path) -> list[str]:
    """Names, relative to a data set's folder, of the files that travel with it; in order.

    Raises:
        UserError: there is something beside files of plain names.
    """
    found = sorted(path for path in (folder / "data").rglob("*") if not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in found]
    for path, name in zip(found, names, strict=True):
        if not path.is_file() or not _FILE_NAME.fullmatch(name):
            raise UserError(f"{path} is not a file of a data set: remove it")
    return names


def _add(archive: tarfile.TarFile, name: str, size: int, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)  # owner, mode and time stay at fixed defaults
    member.size = size
    archive.addfile(member, file)


def _checksum(path: Path, bar: tqdm) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            bar.update(len(block))
    return {"bytes": size, "sha256": digest.hexdigest()}


def _read_manifest(archive: tarfile.TarFile, path: Path) -> dict[str, Any]:
    foreign = UserError(f"{path} is not an archive that om2p-data pack wrote: it does not begin with a {_MANIFEST}")
    member = archive.next()
    file = archive.extractfile(member) if member is not None and member.isreg() else None
    if member is None or file is None or member.name != _MANIFEST or member.size > _MANIFEST_BYTES:
        raise foreign
    try:
        manifest = json.loads(file.read())
        schema = manifest["om2p_archive"]
        if schema != SCHEMA:
            raise UserError(f"{path} has om2p_archive {schema!r}: only {SCHEMA!r} is read")
        for name, entry in manifest["files"].items():
            if not _FILE_NAME.fullmatch(name):
                raise UserError(f"{path} is refused: its manifest lists a file {name!r}, which lies outside data/")
            if not (isinstance(entry["bytes"], int) and entry["bytes"] >= 0 and isinstance(entry["sha256"], str)):
                raise foreign
        if not isinstance(manifest["dataset_id"], str) or "content_hash" not in manifest:
            raise foreign
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise foreign from None
    return manifest


def _extract(archive: tarfile.TarFile, entries: dict[str, Any], folder: Path, path: Path, bar: tqdm) -> None:
    """Write the members that the manifest lists, comparing size and checksum; anything else is refused."""
    missing = dict(entries)
    while (member := archive.next()) is not None:
        entry = missing.pop(member.name, None)
        if entry is None or not member.isreg():
            raise UserError(f"{path} is refused: {member.name!r} is not one of the plain files that its manifest lists")
        source = archive.extractfile(member)
        assert source is not None, "a regular member has contents"
        if member.size != entry["bytes"]:
            raise UserError(f"{path} is damaged: {member.name} has {member.size} bytes instead of {entry['bytes']}")
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as file:
            while block := source.read(_BLOCK):
                digest.update(block)
                file.write(block)
                bar.update(len(block))
            sync(file)
        if digest.hexdigest() != entry["sha256"]:
            raise UserError(f"{path} is damaged: the checksum of {member.name} is wrong")
    if missing:
        raise UserError(f"{path} is damaged: {next(iter(missing))} is missing")
    sync_folder(folder / "data")


def _check_space(folder: Path, entries: dict[str, Any], dataset_id: str) -> None:
    needed, free = sum(entry["bytes"] for entry in entries.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"not enough space for {dataset_id}: it takes {needed / 1e6:.0f} MB, {free / 1e6:.0f} are free")


def _bar(what: str, total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None if progress else True)
