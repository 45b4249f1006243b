"""Episodes to and from Minari's HDF5 layout, in bulk through h5py's low-level interface.

The layout is the one Minari 0.5 reads: one group `episode_<i>` each, Dict spaces as sub-groups, infos with T + 1
rows. Minari's own writer makes chunked, growable data sets one high-level call at a time; on short episodes that
is most of its time and of its file. Here small arrays lie inside their object headers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5o, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue] (compiled)
from tqdm import tqdm

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.storage import reason, sync

FILE_NAME = "main_data.hdf5"
_COMPACT_LIMIT = 64_000  # bytes; one message of an object header holds less than 64 KiB
_METADATA_BLOCK = 1 << 20  # bytes
_EPISODES_PER_BLOCK = 256
_TEMPLATE_BYTES = 64 << 20  # where lengths vary, there are as many templates as fit
_TEXT = h5py.string_dtype()


def write_episodes(
    path: Path, episodes: Episodes, agents: Sequence[str], policies: Sequence[tuple[str, int]], *, progress: bool
) -> None:
    """Write all episodes into a new file, down to the disk.

    Args:
        path: the file, `main_data.hdf5` of a Minari data set.
        episodes: what to write; `policy` indexes `policies`.
        agents: names of the N agents in order.
        policies: name and training step of each behaviour policy.
        progress: show a bar on a terminal.

    Raises:
        OSError, RuntimeError: the file cannot be written.
    """
    observation_paths = [f"observations/{agent}".encode() for agent in agents]
    action_paths = [f"actions/{agent}".encode() for agent in agents]
    team = {
        b"rewards": episodes.team_rewards,
        b"terminations": episodes.team_terminated,
        b"truncations": episodes.team_truncated,
    }
    infos = _infos(episodes)
    returns = episodes.team_returns
    row_ends = np.cumsum(episodes.lengths + 1)
    step_ends = np.cumsum(episodes.lengths)
    templates = _Templates()
    file = _create_file(path)
    try:
        with _bar("writing", episodes.num_episodes, progress) as bar:
            for begin in range(0, episodes.num_episodes, _EPISODES_PER_BLOCK):
                end = min(begin + _EPISODES_PER_BLOCK, episodes.num_episodes)
                first_row, first_step = int(episodes.episode_start[begin]), int(episodes.transition_start[begin])
                obs = _agents_first(episodes.obs[first_row : row_ends[end - 1]])  # [N, rows, O]
                actions = _agents_first(episodes.actions[first_step : step_ends[end - 1]])  # [N, steps, A]
                for index in range(begin, end):
                    rows = slice(int(episodes.episode_start[index]), int(row_ends[index]))
                    steps = slice(int(episodes.transition_start[index]), int(step_ends[index]))
                    block_rows = slice(rows.start - first_row, rows.stop - first_row)
                    block_steps = slice(steps.start - first_step, steps.stop - first_step)
                    arrays = dict(zip(observation_paths, obs[:, block_rows], strict=True))
                    arrays |= zip(action_paths, actions[:, block_steps], strict=True)
                    arrays |= {name: array[steps] for name, array in team.items()}
                    arrays |= {name: array[rows] for name, array in infos.items()}
                    policy, step = policies[episodes.policy[index]]
                    attributes = {
                        b"id": np.array(index, dtype=np.int64),
                        b"total_steps": episodes.lengths[index, ...],
                        b"seed": episodes.seed[index, ...],
                        b"policy": np.array(policy, dtype=_TEXT),
                        b"policy_step": np.array(step, dtype=np.int64),
                        b"return_team": returns[index, ...],
                    }
                    templates.write(file, b"episode_%d" % index, arrays, attributes)
                bar.update(end - begin)
        h5f.flush(file)
    except BaseException:
        with contextlib.suppress(Exception):  # closing tries to write the rest, and fails like the writing before
            file.close()
        raise
    finally:
        templates.close()
    file.close()
    with path.open("rb") as written:
        sync(written)


def read_episodes(
    path: Path,
    agents: Sequence[str],
    policies: Sequence[tuple[str, int]],
    *,
    num_episodes: int,
    num_transitions: int,
    obs_dim: int,
    act_dim: int,
    state_dim: int | None,
    agents_end_together: bool,
    progress: bool,
) -> Episodes:
    """Read the episodes of a file that `write_episodes` wrote.

    Args:
        path: the file, `main_data.hdf5` of a Minari data set.
        agents: names of the N agents, in the order of the arrays' agent dimension.
        policies: name and training step of each behaviour policy, in the order of their indices.
        num_episodes, num_transitions: E and sum T, as the data set's metadata states them.
        obs_dim, act_dim, state_dim: O, A and S; None where no state is stored.
        agents_end_together: the team's flags are every agent's; otherwise each agent's are stored beside them.
        progress: show a bar on a terminal.

    Raises:
        UserError: the file is damaged or does not hold what the metadata states; the message names the file.
    """
    index_of = {policy: index for index, policy in enumerate(policies)}
    observation_paths = [f"observations/{agent}".encode() for agent in agents]
    action_paths = [f"actions/{agent}".encode() for agent in agents]
    width = len(agents)
    reader = _Reader()
    step = 0
    try:
        with h5py.File(path, "r") as file, _bar("reading", num_episodes, progress) as bar:
            if len(file) != num_episodes:
                raise UserError(f"{path} holds {len(file)} episodes, the metadata states {num_episodes}")
            out = _empty_arrays(num_episodes, num_transitions, width, obs_dim, act_dim, state_dim)
            for index in range(num_episodes):
                group = h5g.open(file.id, b"episode_%d" % index)
                length = int(reader.attribute(group, b"total_steps", np.int64))
                if not 0 < length <= num_transitions - step:
                    raise UserError(f"{path} does not hold the {num_transitions} steps that the metadata states")
                steps, rows = slice(step, step + length), slice(step + index, step + index + length + 1)
                for agent in range(width):
                    out["obs"][rows, agent] = reader.array(group, observation_paths[agent], (length + 1, obs_dim))
                    out["actions"][steps, agent] = reader.array(group, action_paths[agent], (length, act_dim))
                out["rewards"][steps] = reader.array(group, b"infos/agent_rewards", (length + 1, width))[1:]
                for name, key in (("terminated", b"terminations"), ("truncated", b"truncations")):
                    if agents_end_together:
                        out[name][steps] = reader.array(group, key, (length,), np.bool_)[:, None]
                    else:
                        out[name][steps] = reader.array(group, b"infos/agent_" + key, (length + 1, width), np.bool_)[1:]
                if state_dim is not None:
                    out["state"][rows] = reader.array(group, b"infos/state", (length + 1, state_dim))
                policy = reader.attribute(group, b"policy", _TEXT).decode()
                policy_step = int(reader.attribute(group, b"policy_step", np.int64))
                out["policy"][index] = index_of[policy, policy_step]
                out["seed"][index] = reader.attribute(group, b"seed", np.int64)
                out["lengths"][index] = length
                step += length
                if index % _EPISODES_PER_BLOCK == 0 or index == num_episodes - 1:
                    bar.update(index + 1 - bar.n)
            if step != num_transitions:
                raise UserError(f"{path} does not hold the {num_transitions} steps that the metadata states")
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{path} is damaged or is not one of our files: {reason(error)}") from error
    try:
        return Episodes.from_arrays(out)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


class _Templates:
    """Episodes in a file in memory, one for each length, that are filled and then copied out as a whole.

    The copy of a group with all that is in it takes HDF5 a third of the time of making its dozen and more objects
    anew, and packs them closer.
    """

    def __init__(self) -> None:
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_fapl_core(_METADATA_BLOCK, False)  # kept in memory, never written
        access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V110)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        self._access = access
        self._groups = h5p.create(h5p.GROUP_CREATE)
        self._groups.set_link_creation_order(h5p.CRT_ORDER_TRACKED)
        self._compact, self._contiguous = _array_properties(h5d.COMPACT), _array_properties(h5d.CONTIGUOUS)
        self._types: dict[np.dtype, tuple[h5t.TypeID, h5t.TypeID]] = {}
        self._scalar = h5s.create(h5s.SCALAR)
        self._open()

    def write(
        self, file: h5f.FileID, name: bytes, arrays: dict[bytes, np.ndarray], attributes: dict[bytes, np.ndarray]
    ) -> None:
        """Write the group `name` with these arrays, by path inside it, and scalar attributes into `file`."""
        length = int(attributes[b"total_steps"])
        if length not in self._templates:
            size = sum(array.nbytes for array in arrays.values())
            if self._bytes + size > _TEMPLATE_BYTES:
                self.close()
                self._open()
            self._bytes += size
            self._templates[length] = self._make(b"%d" % length, arrays, attributes)
        slots, attribute_slots = self._templates[length]
        for (dataset, space, in_memory), array in zip(slots, arrays.values(), strict=True):
            dataset.write(space, space, array, in_memory)
            dataset.flush()
        for (attribute, in_memory), value in zip(attribute_slots, attributes.values(), strict=True):
            attribute.write(value, in_memory)
        h5o.copy(self._memory, b"%d" % length, file, name)

    def close(self) -> None:
        self._templates.clear()
        self._memory.close()

    def _open(self) -> None:
        name = b"templates %d" % id(self)  # HDF5 tells files in memory apart by name
        self._memory = h5f.create(name, h5f.ACC_TRUNC, h5p.create(h5p.FILE_CREATE), self._access)
        self._templates: dict[int, tuple[list[tuple], list[tuple]]] = {}
        self._bytes = 0

    def _make(
        self, name: bytes, arrays: dict[bytes, np.ndarray], attributes: dict[bytes, np.ndarray]
    ) -> tuple[list[tuple], list[tuple]]:
        root = h5g.create(self._memory, name, gcpl=self._groups)
        groups, slots, attribute_slots = {b"": root}, [], []
        for path, array in arrays.items():
            parent, _, leaf = path.rpartition(b"/")
            if parent not in groups:
                groups[parent] = h5g.create(root, parent, gcpl=self._groups)
            layout = self._compact if array.nbytes <= _COMPACT_LIMIT else self._contiguous
            space = h5s.create_simple(array.shape)
            stored, in_memory = self._type(array.dtype)
            slots.append((h5d.create(groups[parent], leaf, stored, space, layout), space, in_memory))
        for key, value in attributes.items():
            stored, in_memory = self._type(value.dtype)
            attribute_slots.append((h5a.create(root, key, stored, self._scalar), in_memory))
        return slots, attribute_slots

    def _type(self, dtype: np.dtype) -> tuple[h5t.TypeID, h5t.TypeID]:
        """How a value is stored, and how it lies in memory; the two differ for text."""
        if dtype not in self._types:
            self._types[dtype] = h5t.py_create(dtype, logical=True), h5t.py_create(dtype)
        return self._types[dtype]


class _Reader:
    """Reads small arrays and attributes; buffers are shared, so a result holds until the next one of its shape."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[tuple[int, ...], Any], tuple[h5s.SpaceID, np.ndarray, h5t.TypeID]] = {}

    def array(self, parent: h5g.GroupID, path: bytes, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        space, buffer, kind = self._buffer(shape, dtype)
        # The memory space is given, so an array of another size is refused instead of running over the buffer.
        h5d.open(parent, path).read(space, h5s.ALL, buffer, kind)
        return buffer

    def attribute(self, parent: h5g.GroupID, name: bytes, dtype: Any) -> Any:
        _, buffer, kind = self._buffer((), dtype)
        opened = h5a.open(parent, name)
        # Unlike that of an array, reading an attribute takes no memory space, and would run over the buffer.
        if opened.shape != ():
            raise ValueError(f"attribute {name.decode()} is not a single value")
        opened.read(buffer, kind)
        return buffer[()]

    def _buffer(self, shape: tuple[int, ...], dtype: Any) -> tuple[h5s.SpaceID, np.ndarray, h5t.TypeID]:
        key = (shape, dtype)
        if key not in self._buffers:
            buffer = np.empty(shape, dtype=dtype)
            space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
            self._buffers[key] = space, buffer, h5t.py_create(buffer.dtype)
        return self._buffers[key]


def _create_file(path: Path) -> h5f.FileID:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V110)
    access.set_meta_block_size(_METADATA_BLOCK)
    access.set_fclose_degree(h5f.CLOSE_STRONG)  # closes even when an error leaves objects open
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_link_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
    return h5f.create(os.fsencode(path), h5f.ACC_EXCL, creation, access)


def _array_properties(layout: int) -> h5p.PropDCID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_layout(layout)
    properties.set_fill_time(h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    return properties


def _infos(episodes: Episodes) -> dict[bytes, np.ndarray]:
    """The info arrays of all episodes by path; row t + 1 of an episode belongs to its step t, [sum(T_e + 1), ...]."""
    infos = {b"infos/agent_rewards": _after_steps(episodes, episodes.rewards, first_row=0)}
    if not episodes.agents_end_together:
        infos[b"infos/agent_terminations"] = _after_steps(episodes, episodes.terminated, first_row=False)
        infos[b"infos/agent_truncations"] = _after_steps(episodes, episodes.truncated, first_row=False)
        infos[b"infos/agent_mask"] = _after_steps(episodes, ~episodes.absent, first_row=True)
    if episodes.state is not None:
        infos[b"infos/state"] = episodes.state
    return infos


def _after_steps(episodes: Episodes, values: np.ndarray, first_row: float) -> np.ndarray:
    rows = np.full((len(episodes.obs), *values.shape[1:]), first_row, dtype=values.dtype)
    rows[episodes.obs_index + 1] = values
    return rows


def _agents_first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(1, 0, 2))


def _empty_arrays(
    episodes: int, steps: int, agents: int, obs_dim: int, act_dim: int, state_dim: int | None
) -> dict[str, np.ndarray]:
    arrays = {
        "obs": np.empty((steps + episodes, agents, obs_dim), dtype=np.float32),
        "actions": np.empty((steps, agents, act_dim), dtype=np.float32),
        "rewards": np.empty((steps, agents), dtype=np.float32),
        "terminated": np.empty((steps, agents), dtype=np.bool_),
        "truncated": np.empty((steps, agents), dtype=np.bool_),
        "lengths": np.empty(episodes, dtype=np.int64),
        "policy": np.empty(episodes, dtype=np.int32),
        "seed": np.empty(episodes, dtype=np.int64),
    }
    if state_dim is not None:
        arrays["state"] = np.empty((steps + episodes, state_dim), dtype=np.float32)
    return arrays


def _bar(what: str, total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc=what, unit=" episodes", disable=None if progress else True, mininterval=0.5)
