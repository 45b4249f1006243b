"""What can still be read of a damaged data set."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.serialization import serialize_space

from om2p_data import columns, metadata
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.storage import locked
from om2p_data.validation.facts import Facts
from om2p_data.validation.findings import Report
from om2p_data.validation.raw import RawFile

_PLAIN_KEYS = (  # of Minari's metadata, those that stay true when episodes were lost
    "ref_min_score",
    "ref_max_score",
    "algorithm_name",
    "author",
    "author_email",
    "code_permalink",
    "description",
    "requirements",
)
_SPEC_KEYS = ("env_spec", "eval_env_spec")
_TOPS = {"observations": "observation_space", "actions": "action_space"}


def whole(raw: RawFile, facts: Facts, numbers: Sequence[int]) -> dict[int, int]:
    """Those of the given episodes of which every array is there at its length: number -> steps."""
    leaves = raw.leaves(facts.declared if facts.has_spaces else {}, facts.pictures)
    blocks = raw.blocks(numbers, leaves, Report())
    return {
        int(number): int(length)
        for block in blocks
        for number, length in zip(block.numbers, block.lengths, strict=True)
    }


def spaces_of(raw: RawFile, facts: Facts, numbers: Sequence[int]) -> dict[str, str]:
    """Minari's two metadata keys with the spaces: as the metadata have them, else the least that hold the data."""
    if facts.has_spaces:
        return {key: facts.content[key] for key in _TOPS.values()}
    seen: dict[str, _Range] = {}
    for block in raw.blocks(numbers, raw.leaves({}, facts.pictures), Report()):
        for path, array in block.arrays.items():
            if path.partition("/")[0] in _TOPS:
                seen[path] = _Range.of(array).joined(seen.get(path))
    tree: dict = {}
    for path, values in seen.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = values.space()
    return {key: str(serialize_space(_nested(tree[top]))) for top, key in _TOPS.items() if top in tree}


def plain(facts: Facts) -> dict[str, Any]:
    """What the metadata say, as far as it does not depend on the episodes and can be understood."""
    content = {key: facts.content[key] for key in _PLAIN_KEYS if key in facts.content}
    for key in _SPEC_KEYS:
        with contextlib.suppress(Exception):  # specs of other versions of gymnasium, wrappers that are not installed
            EnvSpec.from_json(facts.content[key])
            content[key] = facts.content[key]
    return content


def header_of(folder: Path, facts: Facts) -> metadata.Header | None:
    """What our metadata say, None where they do not say all of it."""
    try:
        return metadata.header(folder, facts.content) if facts.is_complete else None
    except UserError:
        return None


def columns_of(folder: Path, facts: Facts, hdf5_bytes: int | None = None) -> Episodes | None:
    """The data in the flat columns, if they are those that our metadata state.

    Args:
        folder: the data set's.
        facts: what its metadata state.
        hdf5_bytes: size of the HDF5 file that the columns must belong to; by default of any.
    """
    stated = facts.content.get("content_hash")
    if not facts.is_ours or not isinstance(stated, str):
        return None
    size = _stated_size(folder) if hdf5_bytes is None else hdf5_bytes
    episodes = columns.open_mapped(folder, columns.Source(stated, size))
    return episodes if episodes is not None and episodes.content_hash() == stated else None


def _stated_size(folder: Path) -> int:
    """Size of the HDF5 file that the columns belong to, as their manifest has it; -1 where it cannot be read."""
    try:
        return json.loads((folder / columns.FOLDER / "manifest.json").read_text(encoding="utf-8"))["hdf5_bytes"]
    except (OSError, ValueError, LookupError, TypeError):
        return -1


def is_locked(folder: Path) -> bool:
    """Whether a process that is alive is filling the folder."""
    try:
        with locked(folder, wait=False):
            return False
    except BlockingIOError:
        return True


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Range:
    """Type, shape of a row, smallest and largest value of an array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    low: float
    high: float

    @classmethod
    def of(cls, array: np.ndarray) -> _Range:
        return cls(array.dtype, array.shape[1:], array.min(initial=0), array.max(initial=0))

    def joined(self, other: _Range | None) -> _Range:
        if other is None:
            return self
        return _Range(self.dtype, self.shape, min(self.low, other.low), max(self.high, other.high))

    def space(self) -> spaces.Space:
        if self.dtype.kind == "f":
            return spaces.Box(-np.inf, np.inf, self.shape, self.dtype.type)
        low, high = int(self.low), int(self.high)
        if self.shape:
            return spaces.Box(low, high, self.shape, self.dtype.type)
        return spaces.Discrete(high - low + 1, start=low)


def _nested(node: dict | spaces.Space) -> spaces.Space:
    if isinstance(node, spaces.Space):
        return node
    parts = {key: _nested(part) for key, part in node.items()}
    if all(f"_index_{index}" in parts for index in range(len(parts))):  # how Minari names the parts of a tuple
        return spaces.Tuple([parts[f"_index_{index}"] for index in range(len(parts))])
    return spaces.Dict(parts)
