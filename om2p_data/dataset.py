"""Episodes as Minari data sets: write, load, list.

A data set is complete for stock Minari; `flat/` beside it holds the same data as columns that map into memory.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from om2p_data import columns, foreign, hdf5, metadata
from om2p_data.envs.registry import TASKS, Task
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError, nearest
from om2p_data.metadata import BehaviorPolicy
from om2p_data.rebuild import rebuild
from om2p_data.spec import EnvironmentCard
from om2p_data.storage import (
    NAMESPACE,
    DatasetId,
    datasets_root,
    make_namespaces,
    parse_id,
    reason,
    replacing,
    restore,
    sync_folder,
)

__all__ = [
    "BehaviorPolicy",
    "Dataset",
    "Summary",
    "datasets_root",
    "ensure_free",
    "list_datasets",
    "load",
    "write",
]

_HDF5_BYTES_PER_EPISODE = 3_000  # object headers, measured; checked against the free space only


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as it lies on the disk.

    Attributes:
        id: `<namespace>/<task>/<tier>-v<N>`.
        metadata: contents of its metadata.json.
        environment: the agents with their sizes, and the environment around them.
        task: row of the task table, None for environments of other people.
        policies: the behaviour policies that `episodes.policy` indexes.
        episodes: the data; the arrays are read-only, and memory maps wherever columns could be kept.
    """

    id: str
    metadata: dict[str, Any]
    environment: EnvironmentCard
    task: Task | None
    policies: tuple[BehaviorPolicy, ...]
    episodes: Episodes

    def card(self) -> dict[str, Any]:
        """What somebody who has not got the data should know of them, as plain values."""
        made = self.metadata.get("collection", {})
        return {
            "summary": self.environment.summary,
            "tier": self.metadata["tier"],
            "agents": list(self.environment.spec.agents),
            "horizon": self.environment.horizon,
            "episodes": self.episodes.num_episodes,
            "transitions": self.episodes.num_transitions,
            "team_return": metadata.statistics(self.episodes)["team_return"],
            "policies": [
                {key: getattr(policy, key) for key in ("name", "algorithm", "seed", "return_mean", "episodes")}
                for policy in self.policies
            ],
            "tier_sources": self.metadata.get("tier_sources", []),
            "seed": made.get("seed"),
            "commit": made.get("commit"),
        }


@dataclass(frozen=True)
class Summary:
    """One line of a listing: size of the data, team return (None where it is not stated), and megabytes (10^6 bytes)
    of the HDF5 file.
    """

    id: str
    episodes: int
    transitions: int
    return_mean: float | None
    return_std: float | None
    megabytes: float


def write(
    dataset_id: str,
    episodes: Episodes,
    *,
    environment: EnvironmentCard,
    policies: Sequence[BehaviorPolicy],
    collection: Mapping[str, Any],
    tier_sources: Sequence[Mapping[str, Any]] = (),
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Write a data set. It appears under its name when it is complete, and not before.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`, with the environment's name for its task.
        episodes: the data.
        environment: what they were played in; `EnvironmentCard.of` makes it from a row of the task table.
        policies: the behaviour policies that `episodes.policy` indexes.
        collection: how the data came about (code version, packages, seeds, recipe), plain JSON values.
        tier_sources: data sets that these episodes were taken from, each with id, hash and episodes.
        overwrite: replace a data set of that id; it stays until the new one is complete.
        root: folder of all data sets; by default Minari's.
        progress: show a bar on a terminal.

    Returns:
        The data set's folder.

    Raises:
        UserError: malformed or taken id, data that do not fit the team or the policies, metadata that are not plain
            values, a folder that cannot be written or a full disk; nothing is left behind.
    """
    parsed = parse_id(dataset_id)
    if parsed.task != environment.name or not parsed.namespace:
        raise UserError(f"data set id {dataset_id!r} must read <namespace>/{environment.name}/<tier>-v<N>")
    episodes.check()
    _check_fit(episodes, environment, policies)
    ensure_free(dataset_id, overwrite=overwrite, root=root)
    with ThreadPoolExecutor(1) as beside:  # hashing lets go of the interpreter
        hashing = beside.submit(episodes.content_hash)
        return _write(parsed, episodes, environment, policies, collection, tier_sources, hashing, root, progress)


def _write(
    parsed: DatasetId,
    episodes: Episodes,
    environment: EnvironmentCard,
    policies: Sequence[BehaviorPolicy],
    collection: Mapping[str, Any],
    tier_sources: Sequence[Mapping[str, Any]],
    hashing: Future[str],
    root: str | os.PathLike[str] | None,
    progress: bool,
) -> Path:
    folder = datasets_root(root) / str(parsed)
    # Made before anything is written, since it may be refused.
    content = metadata.build(parsed, episodes, environment, policies, collection, tier_sources)
    try:
        make_namespaces(datasets_root(root), parsed)
        raw = sum(array.nbytes for array in episodes.arrays().values())
        _check_space(parsed, root, raw, episodes.num_episodes)
        with replacing(folder) as partial:
            data = partial / "data"
            data.mkdir()
            file = data / hdf5.FILE_NAME
            names = [(policy.name, policy.step) for policy in policies]
            hdf5.write_episodes(file, episodes, environment.spec, names, progress=progress)
            hdf5_bytes = file.stat().st_size
            content |= {"content_hash": hashing.result(), "dataset_size": round(hdf5_bytes / 1e6, 1)}
            metadata.write(partial, content)
            sync_folder(data)
            columns.save(partial, episodes, columns.Source(content["content_hash"], hdf5_bytes))
    except BlockingIOError as error:
        raise UserError(f"{parsed} is being written by another process") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {parsed} to {folder.parent}: {reason(error)}") from error
    return folder


def ensure_free(
    dataset_id: str,
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    *,
    expected: hdf5.Layout | None = None,
) -> None:
    """Find out before a long collection whether its data set can be written.

    Args:
        dataset_id: of the data set.
        overwrite: whether one of that id may be replaced.
        root: folder of all data sets; by default Minari's.
        expected: how much will come, where that is known.

    Raises:
        UserError: malformed id, a data set of that id (without `overwrite`), a folder that cannot be written, or too
            little space.
    """
    parsed = parse_id(dataset_id)
    folder = datasets_root(root) / dataset_id
    _restore(folder)
    if folder.exists() and not overwrite:
        free = parsed._replace(version=parsed.version + 1)
        raise UserError(f"data set {dataset_id} exists already in {datasets_root(root)}: overwrite it or write {free}")
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {dataset_id}: {there} is not a folder that you may write to")
    if expected is not None:
        forms = expected.forms().values()
        raw = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in forms)
        _check_space(parsed, root, raw, expected.num_episodes)


def load(dataset_id: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Open a data set, in a millisecond where its columns are there; otherwise they are rebuilt first.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`.
        root: folder of all data sets; by default Minari's.

    Raises:
        UserError: malformed or unknown id, or a file that is missing, damaged or changed; the message names it.
    """
    parsed = parse_id(dataset_id)
    folder = datasets_root(root) / dataset_id
    _restore(folder)
    if not folder.is_dir():
        raise _unknown(parsed, root)
    content = metadata.read(folder, parsed)
    file = folder / "data" / hdf5.FILE_NAME
    if not file.is_file():
        raise UserError(f"{file} is missing")
    if not metadata.is_ours(content):
        return _load_foreign(dataset_id, folder, content)
    header = metadata.header(folder, content)
    source = columns.Source(header.content_hash, file.stat().st_size)
    episodes = columns.open_mapped(folder, source) or _rebuild(dataset_id, folder, file, header, source)
    return Dataset(dataset_id, content, header.environment, header.environment.task, header.policies, episodes)


def _load_foreign(dataset_id: str, folder: Path, content: dict[str, Any]) -> Dataset:
    environment = foreign.describe(content)
    episodes, policy = foreign.read(folder, content, environment)
    return Dataset(dataset_id, content, environment, None, (policy,), episodes)


def list_datasets(root: str | os.PathLike[str] | None = None) -> list[Summary]:
    """All multi-agent data sets by id, ours and others; only metadata are read, and broken sets are left out."""
    found = []
    for parsed in sorted(_ids(datasets_root(root))):
        try:
            content = metadata.read(datasets_root(root) / str(parsed), parsed)
            if not metadata.is_ours(content):
                if _is_team(content):
                    size = content["total_episodes"], content["total_steps"]
                    found.append(Summary(str(parsed), *size, None, None, content["dataset_size"]))
                continue
            returns = content["statistics"]["team_return"]
            size = content["total_episodes"], content["total_steps"]
            found.append(Summary(str(parsed), *size, returns["mean"], returns["std"], content["dataset_size"]))
        except UserError as error:
            _notice(f"left out {parsed}: {error}")
        except (LookupError, TypeError):
            _notice(f"left out {parsed}: its metadata.json is damaged")
    return found


def _is_team(content: Mapping[str, Any]) -> bool:
    try:
        foreign.describe(content)
    except UserError:
        return False
    return True


def _check_fit(episodes: Episodes, environment: EnvironmentCard, policies: Sequence[BehaviorPolicy]) -> None:
    spec = environment.spec
    expected: dict[str, tuple[int, ...] | None] = {
        "obs": (spec.num_agents, spec.obs_dim),
        "actions": (spec.num_agents, spec.act_dim),
        "state": None if spec.state_dim is None else (spec.state_dim,),
    }
    for name, shape in expected.items():
        array = getattr(episodes, name)
        found = None if array is None else array.shape[1:]
        if found != shape:
            raise UserError(f"{name} has rows of {found}, {environment.name} needs {shape}")
    for name, padding in zip(("obs", "actions"), spec.padding, strict=True):
        if padding.any() and getattr(episodes, name)[:, padding].any():
            raise UserError(f"{name} must be zero where an agent is smaller than the largest")
    for index in np.flatnonzero(spec.discrete):
        chosen = episodes.actions[:, index]
        present = ~episodes.absent[:, index]
        if not ((chosen == 0) | (chosen == 1)).all() or not (chosen.sum(1) == present).all():
            raise UserError(f"actions of {spec.agents[index]!r}, which are discrete, must be one-hot")
    if len({(policy.name, policy.step) for policy in policies}) != len(policies):
        raise UserError("two behaviour policies have the same name and step")
    if episodes.policy.max() >= len(policies):
        raise UserError(f"policy holds index {episodes.policy.max()}, but {len(policies)} policies are given")
    counts = np.bincount(episodes.policy, minlength=len(policies))
    for policy, count in zip(policies, counts, strict=True):
        if policy.episodes != count:
            raise UserError(
                f"behaviour policy {policy.name!r} claims {policy.episodes} episodes, the data hold {count}"
            )


def _check_space(parsed: DatasetId, root: str | os.PathLike[str] | None, raw: int, episodes: int) -> None:
    place = _existing(datasets_root(root) / str(parsed))
    needed = 2 * raw + _HDF5_BYTES_PER_EPISODE * episodes  # the HDF5 file and the columns
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"not enough space for {parsed} in {datasets_root(root)}: it takes about {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free"
        )


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    return next(parent for parent in folder.absolute().parents if parent.exists())


def _restore(folder: Path) -> None:
    try:
        restore(folder)
    except OSError as error:
        raise UserError(f"cannot bring back {folder}, whose replacement was interrupted: {reason(error)}") from error


def _unknown(parsed: DatasetId, root: str | os.PathLike[str] | None) -> UserError:
    near = nearest(str(parsed), [str(found) for found in _ids(datasets_root(root))])
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if parsed.namespace == NAMESPACE and parsed.task in TASKS:
        hints.append(f"to make it, run: om2p-data generate --env {parsed.task} --tier {parsed.tier}")
    return UserError(f"no data set {parsed} in {datasets_root(root)}" + (": " + " ".join(hints) if hints else ""))


def _ids(root: Path) -> list[DatasetId]:
    found = []
    for folder in root.glob("**/data/"):
        try:
            found.append(parse_id(folder.parent.relative_to(root).as_posix()))
        except UserError:
            continue  # hidden folders, and what is no data set
    return found


def _rebuild(dataset_id: str, folder: Path, file: Path, header: metadata.Header, source: columns.Source) -> Episodes:
    _notice(f"{dataset_id}: building the flat columns from {file.name} (once)")
    layout = hdf5.Layout(
        spec=header.environment.spec,
        policies=tuple((policy.name, policy.step) for policy in header.policies),
        num_episodes=header.num_episodes,
        num_transitions=header.num_transitions,
        agents_end_together=header.agents_end_together,
    )
    try:
        rebuild(folder, file, layout, source, progress=True)
    except OSError as error:
        _notice(f"{dataset_id}: the flat columns cannot be kept in {folder} ({reason(error)}), holding them in memory")
    mapped = columns.open_mapped(folder, source)
    if mapped is not None:
        return mapped
    episodes = hdf5.read_episodes(file, layout, progress=True)
    columns.check_hash(file, episodes, source)
    for array in episodes.arrays().values():
        array.flags.writeable = False
    return episodes


def _notice(text: str) -> None:
    print(text, file=sys.stderr)
