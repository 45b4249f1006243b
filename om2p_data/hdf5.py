"""Episodes to and from Minari's HDF5 layout, in bulk through h5py's low-level interface.

The layout is the one Minari 0.5 reads: one group `episode_<i>` each, Dict spaces as sub-groups, infos with T + 1
rows. Minari's own writer makes chunked, growable data sets one high-level call at a time; on short episodes that
is most of its time and of its file. Here small arrays lie inside their object headers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue] (compiled)
from tqdm import tqdm

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.storage import reason, sync

FILE_NAME = "main_data.hdf5"
_COMPACT_LIMIT = 64_000  # bytes; one message of an object header holds less than 64 KiB
_METADATA_BLOCK = 1 << 20  # bytes
_EPISODES_PER_BLOCK = 256
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
    names = [agent.encode() for agent in agents]
    team = {
        b"rewards": episodes.team_rewards,
        b"terminations": episodes.team_terminated,
        b"truncations": episodes.team_truncated,
    }
    infos = _infos(episodes)
    returns = episodes.team_returns
    row_ends = np.cumsum(episodes.lengths + 1)
    step_ends = np.cumsum(episodes.lengths)
    writer = _Writer()
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
                    group = writer.group(file, b"episode_%d" % index)
                    agent_group = writer.group(group, b"observations")
                    for name, array in zip(names, obs, strict=True):
                        writer.array(agent_group, name, array[rows.start - first_row : rows.stop - first_row])
                    agent_group = writer.group(group, b"actions")
                    for name, array in zip(names, actions, strict=True):
                        writer.array(agent_group, name, array[steps.start - first_step : steps.stop - first_step])
                    for name, array in team.items():
                        writer.array(group, name, array[steps])
                    info_group = writer.group(group, b"infos")
                    for name, array in infos.items():
                        writer.array(info_group, name, array[rows])
                    policy, step = policies[episodes.policy[index]]
                    writer.attribute(group, b"id", np.array(index, dtype=np.int64))
                    writer.attribute(group, b"total_steps", episodes.lengths[index, ...])
                    writer.attribute(group, b"seed", episodes.seed[index, ...])
                    writer.attribute(group, b"policy", np.array(policy, dtype=_TEXT))
                    writer.attribute(group, b"policy_step", np.array(step, dtype=np.int64))
                    writer.attribute(group, b"return_team", returns[index, ...])
                bar.update(end - begin)
        h5f.flush(file)
    finally:
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


class _Writer:
    """Makes groups, arrays and attributes; types, spaces and property lists are made once and shared."""

    def __init__(self) -> None:
        self._spaces: dict[tuple[int, ...], h5s.SpaceID] = {(): h5s.create(h5s.SCALAR)}
        self._types: dict[np.dtype, tuple[h5t.TypeID, h5t.TypeID]] = {}
        self._groups = h5p.create(h5p.GROUP_CREATE)
        self._groups.set_link_creation_order(h5p.CRT_ORDER_TRACKED)
        self._compact, self._contiguous = _array_properties(h5d.COMPACT), _array_properties(h5d.CONTIGUOUS)

    def group(self, parent: Any, name: bytes) -> h5g.GroupID:
        return h5g.create(parent, name, gcpl=self._groups)

    def array(self, parent: h5g.GroupID, name: bytes, array: np.ndarray) -> None:
        space = self._space(array.shape)
        stored, in_memory = self._type(array.dtype)
        layout = self._compact if array.nbytes <= _COMPACT_LIMIT else self._contiguous
        h5d.create(parent, name, stored, space, layout).write(space, space, array, in_memory)

    def attribute(self, parent: h5g.GroupID, name: bytes, value: np.ndarray) -> None:
        stored, in_memory = self._type(value.dtype)
        h5a.create(parent, name, stored, self._spaces[()]).write(value, in_memory)

    def _space(self, shape: tuple[int, ...]) -> h5s.SpaceID:
        if shape not in self._spaces:
            self._spaces[shape] = h5s.create_simple(shape)
        return self._spaces[shape]

    def _type(self, dtype: np.dtype) -> tuple[h5t.TypeID, h5t.TypeID]:
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
    """The info arrays of all episodes, row t + 1 of an episode belonging to its step t, [sum(T_e + 1), ...]."""
    infos = {b"agent_rewards": _after_steps(episodes, episodes.rewards, first_row=0)}
    if not episodes.agents_end_together:
        infos[b"agent_terminations"] = _after_steps(episodes, episodes.terminated, first_row=False)
        infos[b"agent_truncations"] = _after_steps(episodes, episodes.truncated, first_row=False)
        infos[b"agent_mask"] = _after_steps(episodes, ~episodes.absent, first_row=True)
    if episodes.state is not None:
        infos[b"state"] = episodes.state
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
