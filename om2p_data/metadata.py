"""metadata.json of a data set: Minari's own keys, and what a multi-agent data set must say beside them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.serialization import serialize_space

from om2p_data.envs.adapters import action_box, observation_box
from om2p_data.envs.registry import Task, find
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.storage import DatasetId, sync

SCHEMA = "1.0"
_FILE = Path("data", "metadata.json")
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class BehaviorPolicy:
    """One policy that collected data, and how it did in this data set.

    Attributes:
        name, step: together unique in a data set; `step` counts the updates of its training.
        algorithm: what trained it.
        seed: of its training.
        hash: of its weights, empty where it has none.
        return_mean, return_std: team return of its episodes in this data set.
        episodes: how many of the data set's episodes it collected.
    """

    name: str
    algorithm: str
    step: int
    seed: int
    hash: str
    return_mean: float
    return_std: float
    episodes: int


@dataclass(frozen=True)
class Header:
    """What reading the data takes from its metadata."""

    task: Task
    policies: tuple[BehaviorPolicy, ...]
    num_episodes: int
    num_transitions: int
    has_state: bool
    agents_end_together: bool
    content_hash: str


def build(
    dataset_id: DatasetId,
    episodes: Episodes,
    task: Task,
    policies: Sequence[BehaviorPolicy],
    collection: Mapping[str, Any],
    tier_sources: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All keys but `dataset_size`, which is known once the data are on the disk.

    Raises:
        UserError: `collection`, `tier_sources` or `policies` hold something that JSON does not.
    """
    agents = list(task.agents)
    metadata: dict[str, Any] = {
        "dataset_id": str(dataset_id),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "minari_version": importlib.metadata.version("minari"),
        "total_episodes": episodes.num_episodes,
        "total_steps": episodes.num_transitions,
        "observation_space": serialize_space(spaces.Dict({agent: observation_box(task) for agent in agents})),
        "action_space": serialize_space(spaces.Dict({agent: action_box(task) for agent in agents})),
        "env_spec": env_spec(task).to_json(),
        "algorithm_name": ", ".join(sorted({policy.algorithm for policy in policies})),
        "description": f"{dataset_id.tier} data: {task.summary}.",
        "ref_min_score": task.reference_random,
        "ref_max_score": task.reference_expert,
        "om2p_schema": SCHEMA,
        "task": task.name,
        "tier": dataset_id.tier,
        "tier_sources": [dict(source) for source in tier_sources],
        "multi_agent": {
            "api": "parallel",
            "agents": agents,
            "controlled_agents": agents,
            "team_reward": "mean over agents; infos/agent_rewards holds each agent's, row t + 1 for step t",
            "state": None if episodes.state is None else "infos/state",
            "agents_end_together": episodes.agents_end_together,
            "horizon": task.horizon,
        },
        "behaviour_policies": [asdict(policy) for policy in policies],
        "collection": dict(collection),
        "content_hash": episodes.content_hash(),
        "statistics": statistics(episodes),
    }
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the metadata of {dataset_id} must be plain JSON values: {error}") from error
    return metadata


def statistics(episodes: Episodes) -> dict[str, Any]:
    """Team return and episode length in figures: mean, population std, min, max and quantiles."""
    lengths = episodes.lengths.astype(np.float64)
    return {"team_return": _figures(episodes.team_returns), "episode_length": _figures(lengths)}


def env_spec(task: Task) -> EnvSpec:
    """Spec of the task as one Gymnasium environment; it needs no registration, and is the same on all tiers."""
    # No max_episode_steps: the world keeps its own clock, and Gymnasium would put a second one around it.
    return EnvSpec(
        id=f"om2p/{task.name}-v0",
        entry_point="om2p_data.envs.adapters:TeamEnv",
        kwargs={"name": task.name},
    )


def write(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write the metadata of the data set in `folder`, down to the disk.

    Raises:
        OSError: the file cannot be written.
    """
    with (folder / _FILE).open("x", encoding="utf-8") as file:
        json.dump(metadata, file, allow_nan=False)
        sync(file)


def read(folder: Path, dataset_id: DatasetId) -> dict[str, Any]:
    """The metadata of the data set in `folder`.

    Raises:
        UserError: the file is missing or damaged, belongs to another id or is not of our schema.
    """
    path = folder / _FILE
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    schema = metadata.get("om2p_schema") if isinstance(metadata, dict) else None
    if schema != SCHEMA:
        found = "no om2p_schema" if schema is None else f"om2p_schema {schema!r}"
        raise UserError(f"{path} has {found}: only data sets of schema {SCHEMA!r}, as om2p-data writes them, are read")
    if metadata.get("dataset_id") != str(dataset_id):
        raise UserError(f"{path} belongs to {metadata.get('dataset_id')!r}, but lies where {dataset_id} should be")
    return metadata


def header(folder: Path, metadata: Mapping[str, Any]) -> Header:
    """What reading the data takes from its metadata.

    Raises:
        UserError: a key is missing or holds something impossible; the message names the file.
    """
    path = folder / _FILE
    try:
        multi_agent = metadata["multi_agent"]
        task = find(metadata["task"])
        if tuple(multi_agent["agents"]) != task.agents:
            raise ValueError(f"agents {multi_agent['agents']} are not those of {task.name}: {list(task.agents)}")
        return Header(
            task=task,
            policies=tuple(BehaviorPolicy(**policy) for policy in metadata["behaviour_policies"]),
            num_episodes=_count(metadata, "total_episodes"),
            num_transitions=_count(metadata, "total_steps"),
            has_state=multi_agent["state"] is not None,
            agents_end_together=bool(multi_agent["agents_end_together"]),
            content_hash=metadata["content_hash"],
        )
    except KeyError as error:
        raise UserError(f"{path} is damaged: key {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _count(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata[key]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}")
    return value


def _figures(values: np.ndarray) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {str(q): float(np.quantile(values, q)) for q in _QUANTILES},
    }
