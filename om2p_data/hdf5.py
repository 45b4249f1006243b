"""Episodes to and from Minari's HDF5 layout, in bulk through h5py's low-level interface.

The layout is the one Minari 0.5 reads: one group `episode_<i>` each, Dict spaces as sub-groups, infos with T + 1
rows. Minari's own writer makes chunked, growable data sets one high-level call at a time; on short episodes that
is most of its time and of its file. Here small arrays lie inside their object headers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5o, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue] (compiled)
from tqdm import tqdm

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.spec import TeamSpec
from om2p_data.storage import reason, sync

FILE_NAME = "main_data.hdf5"
_COMPACT_LIMIT = 64_000  # bytes; one message of an object header holds less than 64 KiB
_METADATA_BLOCK = 1 << 20  # bytes
_EPISODES_PER_BLOCK = 256
_TEMPLATE_BYTES = 64 << 20  # where lengths vary, there are as many templates as fit
_TEXT = h5py.string_dtype()


def write_episodes(
    path: Path, episodes: Episodes, spec: TeamSpec, policies: Sequence[tuple[str, int]], *, progress: bool
) -> None:
    """Write all episodes into a new file, down to the disk.

    Args:
        path: the file, `main_data.hdf5` of a Minari data set.
        episodes: what to write; `policy` indexes `policies`.
        spec: the agents and their own sizes, at which they are stored.
        policies: name and training step of each behaviour policy.
        progress: show a bar on a terminal.

    Raises:
        OSError, RuntimeError: the file cannot be written.
    """
    observation_paths, action_paths = _paths(spec)
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
        with bar("writing", episodes.num_episodes, progress) as shown:
            for begin in range(0, episodes.num_episodes, _EPISODES_PER_BLOCK):
                end = min(begin + _EPISODES_PER_BLOCK, episodes.num_episodes)
                first_row, first_step = int(episodes.episode_start[begin]), int(episodes.transition_start[begin])
                obs = _own_observations(spec, episodes.obs[first_row : row_ends[end - 1]])  # N times [rows, O_i]
                actions = _own_actions(spec, episodes.actions[first_step : step_ends[end - 1]])  # N times [steps, A_i]
                for index in range(begin, end):
                    rows = slice(int(episodes.episode_start[index]), int(row_ends[index]))
                    steps = slice(int(episodes.transition_start[index]), int(step_ends[index]))
                    block_rows = slice(rows.start - first_row, rows.stop - first_row)
                    block_steps = slice(steps.start - first_step, steps.stop - first_step)
                    arrays = {path: own[block_rows] for path, own in zip(observation_paths, obs, strict=True)}
                    arrays |= {path: own[block_steps] for path, own in zip(action_paths, actions, strict=True)}
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
                shown.update(end - begin)
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


@dataclass(frozen=True)
class Layout:
    """What has to be known to read a file that `write_episodes` wrote.

    Attributes:
        spec: the agents and their own sizes.
        policies: name and training step of each behaviour policy, in the order of their indices.
        num_episodes, num_transitions: E and sum T, as the data set's metadata states them.
        agents_end_together: the team's flags are every agent's; otherwise each agent's are stored beside them.
    """

    spec: TeamSpec
    policies: tuple[tuple[str, int], ...]
    num_episodes: int
    num_transitions: int
    agents_end_together: bool

    def forms(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and type of every array of the Episodes."""
        episodes, steps, spec = self.num_episodes, self.num_transitions, self.spec
        forms: dict[str, tuple[tuple[int, ...], type]] = {
            "obs": ((steps + episodes, spec.num_agents, spec.obs_dim), np.float32),
            "actions": ((steps, spec.num_agents, spec.act_dim), np.float32),
            "rewards": ((steps, spec.num_agents), np.float32),
            "terminated": ((steps, spec.num_agents), np.bool_),
            "truncated": ((steps, spec.num_agents), np.bool_),
            "lengths": ((episodes,), np.int64),
            "policy": ((episodes,), np.int32),
            "seed": ((episodes,), np.int64),
        }
        if spec.state_dim is not None:
            forms["state"] = ((steps + episodes, spec.state_dim), np.float32)
        return forms


def read_lengths(path: Path, layout: Layout) -> np.ndarray:
    """Steps of every episode, int64 [E].

    Raises:
        UserError: the file is damaged or does not hold what the metadata state; the message names the file.
    """
    reader = _Reader()
    with _complaining(path), h5py.File(path, "r") as file:
        if len(file) != layout.num_episodes:
            raise UserError(f"{path} holds {len(file)} episodes, the metadata states {layout.num_episodes}")
        lengths = np.empty(layout.num_episodes, np.int64)
        for index in range(layout.num_episodes):
            group = h5g.open(file.id, b"episode_%d" % index)
            lengths[index] = reader.attribute(group, b"total_steps", np.int64)
        if lengths.min() < 1 or lengths.sum() != layout.num_transitions:
            raise UserError(f"{path} does not hold the {layout.num_transitions} steps that the metadata states")
        return lengths


def read_share(
    path: Path, layout: Layout, lengths: np.ndarray, episodes: range, out: Mapping[str, np.ndarray]
) -> Iterator[int]:
    """Read some episodes into their places in the arrays of all.

    Args:
        path: the file, `main_data.hdf5` of a Minari data set.
        layout: what it holds.
        lengths: of all episodes, int64 [E].
        episodes: which ones.
        out: arrays of `Layout.forms`, zeros where agents are smaller than the largest.

    Yields:
        How many episodes were read since the last time.

    Raises:
        UserError: the file is damaged or does not hold what the metadata state; the message names the file.
    """
    spec, reader = layout.spec, _Reader()
    index_of = {policy: index for index, policy in enumerate(layout.policies)}
    observation_paths, action_paths = _paths(spec)
    out["lengths"][episodes.start : episodes.stop] = lengths[episodes.start : episodes.stop]
    step = int(lengths[: episodes.start].sum())
    team_flags = {"terminated": b"terminations", "truncated": b"truncations"}
    with _complaining(path), h5py.File(path, "r") as file:
        for index in episodes:
            group = h5g.open(file.id, b"episode_%d" % index)
            length = int(lengths[index])
            steps, rows = slice(step, step + length), slice(step + index, step + index + length + 1)
            for name, key in team_flags.items():
                if layout.agents_end_together:
                    out[name][steps] = reader.array(group, key, (length,), np.bool_)[:, None]
                else:
                    own = reader.array(group, b"infos/agent_" + key, (length + 1, spec.num_agents), np.bool_)
                    out[name][steps] = own[1:]
            for agent, size in enumerate(spec.obs_dims):
                out["obs"][rows, agent, :size] = reader.array(group, observation_paths[agent], (length + 1, size))
            for agent, size in enumerate(spec.act_dims):
                if spec.discrete[agent]:
                    chosen = reader.array(group, action_paths[agent], (length,), np.int64)
                    out["actions"][steps, agent, :size] = np.eye(size, dtype=np.float32)[chosen]
                else:
                    out["actions"][steps, agent, :size] = reader.array(group, action_paths[agent], (length, size))
            if not layout.agents_end_together:
                mask = reader.array(group, b"infos/agent_mask", (length + 1, spec.num_agents), np.bool_)
                out["actions"][steps][~mask[1:]] = 0.0  # an absent agent's choice is stored as the first one
            out["rewards"][steps] = reader.array(group, b"infos/agent_rewards", (length + 1, spec.num_agents))[1:]
            if spec.state_dim is not None:
                out["state"][rows] = reader.array(group, b"infos/state", (length + 1, spec.state_dim))
            if len(index_of) > 1:
                policy = reader.attribute(group, b"policy", _TEXT).decode()
                policy_step = int(reader.attribute(group, b"policy_step", np.int64))
                out["policy"][index] = index_of[policy, policy_step]
            out["seed"][index] = reader.attribute(group, b"seed", np.int64)
            step += length
            if (index + 1 - episodes.start) % _EPISODES_PER_BLOCK == 0:
                yield _EPISODES_PER_BLOCK
        yield len(episodes) % _EPISODES_PER_BLOCK


def read_episodes(path: Path, layout: Layout, *, progress: bool) -> Episodes:
    """All episodes of a file that `write_episodes` wrote, in memory.

    Raises:
        UserError: the file is damaged or does not hold what the metadata state; the message names the file.
    """
    lengths = read_lengths(path, layout)
    out = {name: np.zeros(shape, kind) for name, (shape, kind) in layout.forms().items()}
    with bar("reading", layout.num_episodes, progress) as shown:
        for count in read_share(path, layout, lengths, range(layout.num_episodes), out):
            shown.update(count)
    try:
        return Episodes.from_arrays(out)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def bar(what: str, total: int, progress: bool) -> tqdm:
    """A bar over episodes, on terminals only."""
    return tqdm(total=total, desc=what, unit=" episodes", disable=None if progress else True, mininterval=0.5)


@contextlib.contextmanager
def _complaining(path: Path) -> Iterator[None]:
    """Whatever goes wrong while reading is said in one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise UserError(f"{path} is damaged or is not one of our files: {reason(error)}") from error


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


def _paths(spec: TeamSpec) -> tuple[list[bytes], list[bytes]]:
    """Paths of all agents' observations and actions inside an episode."""
    return [f"observations/{agent}".encode() for agent in spec.agents], [
        f"actions/{agent}".encode() for agent in spec.agents
    ]


def _own_observations(spec: TeamSpec, padded: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(padded[:, agent, :size]) for agent, size in enumerate(spec.obs_dims)]


def _own_actions(spec: TeamSpec, padded: np.ndarray) -> list[np.ndarray]:
    return [
        padded[:, agent, :size].argmax(1) if spec.discrete[agent] else np.ascontiguousarray(padded[:, agent, :size])
        for agent, size in enumerate(spec.act_dims)
    ]
