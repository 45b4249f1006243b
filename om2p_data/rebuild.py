"""Flat columns made anew from the HDF5 file, by one process a core: `python -m om2p_data.rebuild` is one of them.

HDF5 reads in one thread only, and forty thousand short episodes take it half a minute. The processes read shares of the
episodes straight into the column files, which are mapped into memory, so nothing is held twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from om2p_data import columns, hdf5
from om2p_data.envs.vector import available_threads
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.spec import TeamSpec
from om2p_data.storage import replacing

Tick = Callable[[int], object]

_ENOUGH_FOR_PROCESSES = 4_000  # episodes; below, starting processes takes longer than they save


def rebuild(dataset_folder: Path, file: Path, layout: hdf5.Layout, source: columns.Source, *, progress: bool) -> None:
    """Write the columns of a data set from its HDF5 file; killed in between, it leaves none or complete ones.

    Args:
        dataset_folder: the data set.
        file: its HDF5 file.
        layout: what the file holds.
        source: content hash and size that the columns must have.
        progress: show a bar on a terminal.

    Raises:
        UserError: the file is damaged, or holds something else than its metadata say.
        OSError: the columns cannot be written.
    """
    lengths = hdf5.read_lengths(file, layout)
    with replacing(dataset_folder / columns.FOLDER) as folder:
        maps = {
            name: np.lib.format.open_memmap(columns.path_of(folder, name), "w+", kind, shape)
            for name, (shape, kind) in layout.forms().items()
        }
        maps["lengths"][:] = lengths
        workers = min(available_threads(), layout.num_episodes // _ENOUGH_FOR_PROCESSES)
        with hdf5.bar("reading", layout.num_episodes, progress) as shown:
            if workers > 1:
                _in_processes(file, folder, layout, workers, shown.update)
            else:
                for count in hdf5.read_share(file, layout, lengths, range(layout.num_episodes), maps):
                    shown.update(count)
        try:
            episodes = Episodes.from_arrays({name: column.view(np.ndarray) for name, column in maps.items()})
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        columns.check_hash(file, episodes, source)
        for column in maps.values():
            column.flush()
        columns.write_manifest(folder, episodes, source)


def _in_processes(file: Path, folder: Path, layout: hdf5.Layout, workers: int, tick: Tick) -> None:
    bounds = np.linspace(0, layout.num_episodes, workers + 1).astype(int)
    running = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        task = {"file": str(file), "folder": str(folder), "layout": asdict(layout), "begin": begin, "end": end}
        process = subprocess.Popen(
            [sys.executable, "-m", "om2p_data.rebuild"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(task))
        process.stdin.close()
        running.append(process)
    complaints: list[str] = []
    readers = [threading.Thread(target=_follow, args=(process, tick, complaints)) for process in running]
    try:
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    finally:
        for process in running:
            process.kill()
            process.wait()
    if complaints:
        raise UserError(complaints[0])


def _follow(process: subprocess.Popen, tick: Tick, complaints: list[str]) -> None:
    """Pass on what a process says: how many more episodes are read, or what is wrong."""
    done = False
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        if "error" in said:
            complaints.append(said["error"])
        done = done or said.get("done", False)
        tick(said.get("read", 0))
    if not done and not complaints:
        complaints.append("a process that was reading the data set died")


def _read_share() -> None:
    """What one of the processes does: read its share, as standard input describes it."""
    task = json.load(sys.stdin)
    described = task["layout"]
    spec = {key: _tuples(value) for key, value in described.pop("spec").items()}
    layout = hdf5.Layout(spec=TeamSpec(**spec), **(described | {"policies": tuple(map(tuple, described["policies"]))}))
    folder = Path(task["folder"])
    maps = {name: np.load(columns.path_of(folder, name), mmap_mode="r+") for name in layout.forms()}
    arrays = {name: column.view(np.ndarray) for name, column in maps.items()}
    share = range(task["begin"], task["end"])
    try:
        for count in hdf5.read_share(Path(task["file"]), layout, arrays["lengths"].copy(), share, arrays):
            print(json.dumps({"read": count}), flush=True)
        print(json.dumps({"done": True}), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    _read_share()
