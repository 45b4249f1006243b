"""The HDF5 file of any Minari data set, read without trust: what cannot be read is reported and left out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from h5py import h5a, h5d, h5g, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue] (compiled)
from minari.dataset.minari_storage import is_image_space

from om2p_data.storage import reason
from om2p_data.validation.findings import Report, Severity

_NAME = re.compile(r"episode_(0|[1-9][0-9]*)")
_STEP_ARRAYS = ("rewards", "terminations", "truncations")
_ATTRIBUTES = ("id", "total_steps", "seed", "policy", "policy_step", "return_team")
_ROWS_PER_BLOCK = 1 << 16
# What a damaged file raises when it is read. (A corrupt header may even claim an array larger than the memory.)
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError)


@dataclass(frozen=True)
class Leaf:
    """One array of every episode.

    Attributes:
        path: inside the episode's group, e.g. `observations/agent_0`.
        final_row: whether it has T + 1 rows (observations, infos) or T (the rest).
        space: of one row, None where nothing declares it.
        dtype: of the numbers, None where nothing declares it.
        opaque: rows are text or compressed pictures, which are counted but not looked at.
    """

    path: str
    final_row: bool
    space: spaces.Space | None = None
    dtype: np.dtype | None = None
    opaque: bool = False


@dataclass(frozen=True)
class Block:
    """Some whole episodes, joined.

    Attributes:
        numbers: int64 [E], which episodes these are.
        lengths: int64 [E], their steps.
        arrays: by path; [sum T_e, ...] or, with a final row, [sum (T_e + 1), ...].
        attributes: of every episode, as far as they are there; empty where they were not read.
    """

    numbers: np.ndarray
    lengths: np.ndarray
    arrays: dict[str, np.ndarray]
    attributes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first_step(self) -> np.ndarray:
        """int64 [E]"""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def first_row(self) -> np.ndarray:
        """int64 [E], in arrays with a final row."""
        return self.first_step + np.arange(len(self.lengths))

    def place(self, path: str, row: int, final_row: bool) -> str:
        """Where a row of a joined array lies in the file."""
        starts = self.first_row if final_row else self.first_step
        episode = int(np.searchsorted(starts, row, side="right")) - 1
        return f"episode_{self.numbers[episode]}/{path}, row {row - starts[episode]}"


def rowwise(reduction: Callable[..., np.ndarray], array: np.ndarray) -> np.ndarray:
    """`np.any`, `np.all` or `np.max` of every row, however many dimensions a row has: [T, ...] -> [T]."""
    return reduction(array, axis=tuple(range(1, array.ndim)))


def leaf_spaces(prefix: str, space: spaces.Space) -> dict[str, spaces.Space]:
    """The plain spaces inside a space, by the path under which Minari stores their values."""
    if isinstance(space, spaces.Dict):
        parts = [(key, part) for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [(f"_index_{index}", part) for index, part in enumerate(space.spaces)]
    else:
        return {prefix: space}
    return {path: leaf for key, part in parts for path, leaf in leaf_spaces(f"{prefix}/{key}", part).items()}


class RawFile:
    """A Minari HDF5 file, open for reading.

    Raises:
        OSError: it is missing, is no HDF5 file, is damaged or is being written (BlockingIOError).
    """

    def __init__(self, path: Path):
        try:
            self._file = h5py.File(path, "r")
        except OSError:
            raise
        except UNREADABLE as error:
            raise OSError(reason(error)) from error
        self._types: defaultdict[str, _Types] = defaultdict(_Types)
        try:
            # Names that are no text come as bytes.
            self.names = [
                name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in self._file
            ]
        except UNREADABLE as error:
            self._file.close()
            raise OSError(reason(error)) from error

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def numbers(self) -> list[int]:
        """The episodes' numbers, ascending."""
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, self.names) if match)

    def leaves(self, declared: Mapping[str, spaces.Space], pictures: bool = False) -> list[Leaf]:
        """What every episode must hold: what is declared, the arrays of steps, and whatever infos the first one has.

        Args:
            declared: spaces of observations and actions by path; without any, those of the first readable episode
                count.
            pictures: whether pictures are compressed.
        """
        found = self._paths_of_first()
        tops = ("infos",) if declared else ("observations", "actions", "infos")
        paths = {**declared, **dict.fromkeys(_STEP_ARRAYS)}
        for path in found:
            if path.partition("/")[0] in tops:
                paths.setdefault(path, None)
        return [
            Leaf(
                path,
                final_row=path.startswith(("observations", "infos")),
                space=space,
                dtype=_dtype(path, space),
                opaque=isinstance(space, spaces.Text) or (pictures and space is not None and is_image_space(space)),
            )
            for path, space in paths.items()
        ]

    def blocks(self, numbers: Sequence[int], leaves: Sequence[Leaf], report: Report) -> Iterator[Block]:
        """The whole episodes among `numbers`; others are reported and left out."""
        held: list[tuple[int, int, list[np.ndarray | None], dict[str, Any]]] = []
        rows = 0
        for number in numbers:
            episode = self._episode(number, leaves, report)
            if episode is not None:
                held.append((number, *episode))
                rows += episode[0] + 1
            if held and rows >= _ROWS_PER_BLOCK:
                yield _joined(held, leaves)
                held, rows = [], 0
        if held:
            yield _joined(held, leaves)

    def _paths_of_first(self) -> list[str]:
        for number in self.numbers:
            paths: list[str] = []

            def visit(path: str, item: object, paths: list[str] = paths) -> None:
                if isinstance(item, h5py.Dataset) and isinstance(path, str):
                    paths.append(path)

            try:
                group = self._file[f"episode_{number}"]
                if isinstance(group, h5py.Group):
                    group.visititems(visit)
                    return paths
            except UNREADABLE:
                continue
        return []

    def _episode(
        self, number: int, leaves: Sequence[Leaf], report: Report
    ) -> tuple[int, list[np.ndarray | None], dict[str, Any]] | None:
        """Length, arrays in the order of `leaves` (None for opaque ones) and attributes, or None after a report."""
        place = f"episode_{number}"
        try:
            group = h5g.open(self._file.id, place.encode())
            length = h5d.open(group, b"rewards").shape[0]
            attributes = {
                name: self._attribute(group, name) for name in _ATTRIBUTES if h5a.exists(group, name.encode())
            }
        except UNREADABLE as error:
            report.problem("shapes", f"an episode cannot be read: {reason(error)}", place)
            return None
        if length == 0:
            report.problem("shapes", "an episode has no steps", place)
            return None
        arrays: list[np.ndarray | None] = []
        whole = True
        for leaf in leaves:
            array, problem = self._array(group, leaf, length)
            if problem is not None:
                report.problem("shapes", f"{leaf.path} {problem}", place)
                whole = False
            elif array is not None and leaf.dtype is not None and array.dtype != leaf.dtype:
                # A wider or narrower type of the same kind is cast by every reader.
                alike = array.dtype.kind == leaf.dtype.kind or {array.dtype.kind, leaf.dtype.kind} <= set("iu")
                severity = Severity.WARNING if alike else Severity.ERROR
                message = f"{leaf.path} is {array.dtype} instead of {leaf.dtype}"
                report.problem("types", message, place, severity=severity)
            arrays.append(array)
        return (length, arrays, attributes) if whole else None

    def _array(self, group: h5g.GroupID, leaf: Leaf, length: int) -> tuple[np.ndarray | None, str | None]:
        """The array (None for opaque ones), or what is wrong with it."""
        try:
            dataset = h5d.open(group, leaf.path.encode())
            shape = dataset.shape
            rows = length + leaf.final_row
            if not shape or shape[0] != rows:
                wanted = "one more than steps" if leaf.final_row else "one a step"
                return None, f"has {shape[0] if shape else 'no'} rows instead of {wanted}"
            dtype, in_memory = self._types[leaf.path].of(dataset)
            if leaf.opaque or dtype.kind not in "biuf":
                return None, None
            if leaf.space is not None and leaf.space.shape is not None and shape[1:] != leaf.space.shape:
                return None, f"has rows of {shape[1:]} instead of {leaf.space.shape}"
            array = np.empty(shape, dtype)
            if array.size:
                dataset.read(h5s.ALL, h5s.ALL, array, in_memory)
            return array, None
        except KeyError:
            return None, "is missing"
        except UNREADABLE as error:
            return None, f"cannot be read: {reason(error)}"

    def _attribute(self, group: h5g.GroupID, name: str) -> Any:
        opened = h5a.open(group, name.encode())
        dtype, in_memory = self._types[name].of(opened)
        value = np.empty(opened.shape, dtype)
        opened.read(value, in_memory)
        plain = value.item() if value.size == 1 else value.tolist()
        return plain.decode(errors="replace") if isinstance(plain, bytes) else plain


def _dtype(path: str, space: spaces.Space | None) -> np.dtype | None:
    if path in ("terminations", "truncations"):
        return np.dtype(np.bool_)
    return None if space is None or space.dtype is None else np.dtype(space.dtype)


class _Types:
    """numpy's and HDF5's view of stored types; most arrays have the type of the one before, so the last is kept."""

    def __init__(self) -> None:
        self._stored: h5t.TypeID | None = None
        self._known: tuple[np.dtype, h5t.TypeID] = np.dtype(np.float32), h5t.NATIVE_FLOAT

    def of(self, opened: h5d.DatasetID | h5a.AttrID) -> tuple[np.dtype, h5t.TypeID]:
        """numpy's type, and how HDF5 puts it into numpy's memory."""
        stored = opened.get_type()
        if self._stored is None or not stored.equal(self._stored):
            dtype = opened.dtype
            self._stored, self._known = stored, (dtype, h5t.py_create(dtype))
        return self._known


def _joined(held: Sequence[tuple[int, int, list[np.ndarray | None], dict[str, Any]]], leaves: Sequence[Leaf]) -> Block:
    arrays = {}
    for index, leaf in enumerate(leaves):
        parts = [array for _, _, arrays_of, _ in held if (array := arrays_of[index]) is not None]
        # Rows of one shape: declared ones were compared with their space, others may differ between episodes.
        if len(parts) == len(held) and len({part.shape[1:] for part in parts}) == 1:
            arrays[leaf.path] = np.concatenate(parts)
    return Block(
        numbers=np.array([number for number, *_ in held], dtype=np.int64),
        lengths=np.array([length for _, length, *_ in held], dtype=np.int64),
        arrays=arrays,
        attributes=[attributes for *_, attributes in held],
    )
