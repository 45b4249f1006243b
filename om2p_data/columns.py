"""Flat columns: one `.npy` file a field of Episodes, beside a Minari data set, mapped into memory in a millisecond.

They hold nothing that the HDF5 file does not, so they may be deleted at any time and need not travel with the data.
The manifest states which content they belong to; columns that belong to another content are not opened.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError

FOLDER = "flat"
_MANIFEST = "manifest.json"
_PARTIAL = ".flat.partial"


@dataclass(frozen=True)
class Source:
    """What columns were made from: content hash of the data and size in bytes of the HDF5 file."""

    content_hash: str
    hdf5_bytes: int


def save(dataset_folder: Path, episodes: Episodes, source: Source) -> None:
    """Write the columns and replace those that are there; a kill in between leaves none or the complete ones.

    Raises:
        OSError: the folder cannot be written.
    """
    final, partial = dataset_folder / FOLDER, dataset_folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        described: dict[str, Any] = {}
        for name, array in episodes.arrays().items():
            with (partial / f"{name}.npy").open("xb") as file:
                np.save(file, array, allow_pickle=False)
                sync(file)
            described[name] = {"dtype": array.dtype.str, "shape": list(array.shape)}
        manifest = {
            "om2p_schema": "1.0",
            "content_hash": source.content_hash,
            "hdf5_bytes": source.hdf5_bytes,
            "columns": described,
        }
        with (partial / _MANIFEST).open("x", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            sync(file)
        sync_folder(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync_folder(dataset_folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def open_mapped(dataset_folder: Path, source: Source) -> Episodes | None:
    """The columns as read-only memory maps, or None where they are absent, damaged or belong to other data."""
    folder = dataset_folder / FOLDER
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if Source(manifest["content_hash"], manifest["hdf5_bytes"]) != source:
            return None
        arrays: dict[str, np.ndarray] = {}
        for name, form in manifest["columns"].items():
            column = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if [column.dtype.str, list(column.shape)] != [form["dtype"], form["shape"]]:
                return None
            arrays[name] = column.view(np.ndarray)  # the plain class indexes faster than np.memmap
        return Episodes.from_arrays(arrays, scan=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError):
        return None


def sync(file: Any) -> None:
    """Make sure that what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk; systems that cannot do that are left alone."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
