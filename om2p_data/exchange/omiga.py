"""OMIGA's HDF5 files (github.com/ZhengYinan-AIR/OMIGA): five arrays over all steps, and no final observations.

| key | shape | what it holds |
|---|---|---|
| `o` | (T, N, O) | observations |
| `s` | (T, N, S) or (T, S) | states, often one for each agent |
| `a` | (T, N, A) or (T, N) | actions; whole numbers are choices |
| `r` | (T, 1), (T,) or (T, N) | rewards, the team's or each agent's |
| `d` | as `r` | true on the last step of an episode |
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from om2p_data.errors import UserError
from om2p_data.exchange.stacks import from_stacks
from om2p_data.exchange.transitions import Transitions
from om2p_data.storage import reason

_KEYS = {"obs": "o", "state": "s", "actions": "a", "rewards": "r", "dones": "d"}


def read(path: Path) -> Transitions:
    """Transitions from a file.

    Raises:
        UserError: the file cannot be read, an array is missing, of another shape, or holds NaN; the message names it.
    """
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: (f"{path}: array {key!r}", _load(file, key, path)) for name, key in _KEYS.items()}
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as HDF5: {reason(error)}") from error
    return from_stacks(arrays)


def _load(file: h5py.File, key: str, path: Path) -> np.ndarray:
    # A file from elsewhere must not make us read other files, which links and external storage do.
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(file[key], h5py.Dataset):
        raise UserError(f"{path} has no array {key!r}; {', '.join(_KEYS.values())} are needed")
    array = file[key]
    assert isinstance(array, h5py.Dataset)
    if array.external or array.is_virtual:
        raise UserError(f"{path}: array {key!r} lies in another file")
    return array[...]
