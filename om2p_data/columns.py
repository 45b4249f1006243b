"""Flat columns: one `.npy` file a field of Episodes, beside a Minari data set, mapped into memory in a millisecond.

They hold nothing that the HDF5 file does not, so they may be deleted at any time and need not travel with the data.
The manifest states which content they belong to; columns that belong to another content are not opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.storage import replacing, sync

FOLDER = "flat"
_MANIFEST = "manifest.json"
_SCHEMA = "1.0"


@dataclass(frozen=True)
class Source:
    """What columns were made from: content hash of the data and size in bytes of the HDF5 file."""

    content_hash: str
    hdf5_bytes: int


def path_of(folder: Path, name: str) -> Path:
    """The file of a column."""
    return folder / f"{name}.npy"


def save(dataset_folder: Path, episodes: Episodes, source: Source) -> None:
    """Write the columns and replace those that are there; killed in between, it leaves none or complete ones.

    Raises:
        OSError: the folder cannot be written, or another process is writing the same columns.
    """
    with replacing(dataset_folder / FOLDER) as folder:
        for name, array in episodes.arrays().items():
            with path_of(folder, name).open("xb") as file:
                _write_npy(file, array)
                sync(file)
        write_manifest(folder, episodes, source)


def write_manifest(folder: Path, episodes: Episodes, source: Source) -> None:
    """State in the folder of the columns what they hold, down to the disk.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = episodes.arrays()
    manifest = {
        "om2p_schema": _SCHEMA,
        "content_hash": source.content_hash,
        "hdf5_bytes": source.hdf5_bytes,
        "columns": {name: {"dtype": array.dtype.str, "shape": list(array.shape)} for name, array in arrays.items()},
    }
    with (folder / _MANIFEST).open("x", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        sync(file)


def check_hash(file: Path, episodes: Episodes, source: Source) -> None:
    """Make sure that episodes read from `file` are those that the data set was written with.

    Raises:
        UserError: they are not.
    """
    found = episodes.content_hash()
    if found != source.content_hash:
        raise UserError(
            f"{file} was changed after it was written: its content hash is {found[:12]}, its metadata.json says "
            f"{source.content_hash[:12]}"
        )


def open_mapped(dataset_folder: Path, source: Source) -> Episodes | None:
    """The columns as read-only memory maps, or None where they are absent, damaged or belong to other data."""
    folder = dataset_folder / FOLDER
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["om2p_schema"] != _SCHEMA:
            return None
        if Source(manifest["content_hash"], manifest["hdf5_bytes"]) != source:
            return None
        arrays: dict[str, np.ndarray] = {}
        for name in {field.name for field in fields(Episodes)} & set(manifest["columns"]):
            form = manifest["columns"][name]
            column = np.load(path_of(folder, name), mmap_mode="r", allow_pickle=False)
            if [column.dtype.str, list(column.shape)] != [form["dtype"], form["shape"]]:
                return None
            arrays[name] = column.view(np.ndarray)  # the plain class indexes faster than np.memmap
        return Episodes.from_arrays(arrays, scan=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError):
        return None


def _write_npy(file: BinaryIO, array: np.ndarray) -> None:
    """As np.save, which on a full disk says how many items it wrote but not why it stopped."""
    plain = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
    file.write(plain.data)
