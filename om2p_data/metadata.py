"""metadata.json of a data set: Minari's own keys, and what a multi-agent data set must say beside them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.serialization import deserialize_space, serialize_space

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.spec import EnvironmentCard, TeamSpec
from om2p_data.storage import DatasetId, parse_id, sync

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

    environment: EnvironmentCard
    policies: tuple[BehaviorPolicy, ...]
    num_episodes: int
    num_transitions: int
    agents_end_together: bool
    content_hash: str


def build(
    dataset_id: DatasetId,
    episodes: Episodes,
    environment: EnvironmentCard,
    policies: Sequence[BehaviorPolicy],
    collection: Mapping[str, Any],
    tier_sources: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All keys but `content_hash` and `dataset_size`, which are known once the data are on the disk.

    Raises:
        UserError: `collection`, `tier_sources` or `policies` hold something that JSON does not.
    """
    spec = environment.spec
    metadata: dict[str, Any] = {
        "dataset_id": str(dataset_id),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "minari_version": importlib.metadata.version("minari"),
        "total_episodes": episodes.num_episodes,
        "total_steps": episodes.num_transitions,
        "observation_space": serialize_space(spec.observation_space()),
        "action_space": serialize_space(spec.action_space()),
        "algorithm_name": ", ".join(sorted({policy.algorithm for policy in policies})),
        "description": f"{dataset_id.tier} data: {environment.summary}.",
        "om2p_schema": SCHEMA,
        "task": environment.name,
        "summary": environment.summary,
        "tier": dataset_id.tier,
        "tier_sources": [dict(source) for source in tier_sources],
        "multi_agent": {
            "api": "parallel",
            "agents": list(spec.agents),
            "controlled_agents": list(spec.agents),
            "team_reward": "mean over agents; infos/agent_rewards holds each agent's, row t + 1 for step t",
            "state": None if spec.state_dim is None else "infos/state",
            "state_dim": spec.state_dim,
            "agents_end_together": episodes.agents_end_together,
            "horizon": environment.horizon,
        },
        "behaviour_policies": [asdict(policy) for policy in policies],
        "collection": dict(collection),
        "statistics": statistics(episodes),
    }
    if environment.env_spec is not None:
        metadata["env_spec"] = environment.env_spec.to_json()
    for key, reference in (
        ("ref_min_score", environment.reference_random),
        ("ref_max_score", environment.reference_expert),
    ):
        if reference is not None:
            metadata[key] = reference
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the metadata of {dataset_id} must be plain JSON values: {error}") from error
    return metadata


def statistics(episodes: Episodes) -> dict[str, Any]:
    """Team return and episode length in figures: mean, population std, min, max and quantiles."""
    lengths = episodes.lengths.astype(np.float64)
    return {"team_return": _figures(episodes.team_returns), "episode_length": _figures(lengths)}


def write(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write the metadata of the data set in `folder`, down to the disk.

    Raises:
        OSError: the file cannot be written.
    """
    with (folder / _FILE).open("x", encoding="utf-8") as file:
        json.dump(metadata, file, allow_nan=False)
        sync(file)


def read(folder: Path, dataset_id: DatasetId) -> dict[str, Any]:
    """The metadata of the data set in `folder`, whoever wrote it.

    Raises:
        UserError: the file is missing or damaged, or belongs to another id.
    """
    path = folder / _FILE
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise UserError(f"{path} is damaged: it holds no table")
    if metadata.get("dataset_id") != str(dataset_id):
        raise UserError(f"{path} belongs to {metadata.get('dataset_id')!r}, but lies where {dataset_id} should be")
    schema = metadata.get("om2p_schema")
    if schema not in (None, SCHEMA):
        raise UserError(f"{path} has om2p_schema {schema!r}: only schema {SCHEMA!r} and plain Minari sets are read")
    return metadata


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Whether the data set follows our schema, which says more than Minari's own."""
    return metadata.get("om2p_schema") == SCHEMA


def header(folder: Path, metadata: Mapping[str, Any]) -> Header:
    """What reading one of our data sets takes from its metadata.

    Raises:
        UserError: a key is missing or holds something impossible; the message names the file.
    """
    path = folder / _FILE
    try:
        multi_agent = metadata["multi_agent"]
        if not metadata["behaviour_policies"]:
            raise ValueError("behaviour_policies is empty")
        agents = multi_agent["agents"]
        state_dim = None if multi_agent["state"] is None else multi_agent["state_dim"]
        return Header(
            environment=environment(metadata, agents, state_dim, multi_agent["horizon"]),
            policies=tuple(BehaviorPolicy(**policy) for policy in metadata["behaviour_policies"]),
            num_episodes=_count(metadata, "total_episodes"),
            num_transitions=_count(metadata, "total_steps"),
            agents_end_together=bool(multi_agent["agents_end_together"]),
            content_hash=metadata["content_hash"],
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} is damaged: key {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def environment(
    metadata: Mapping[str, Any], agents: Sequence[str], state_dim: int | None, horizon: int | None
) -> EnvironmentCard:
    """What the metadata of a Minari data set, ours or not, say about its environment.

    Raises:
        UserError: the spaces are not those of a team of these agents.
        KeyError, ValueError, TypeError: the metadata are damaged.
    """
    observations, actions = (deserialize_space(metadata[key]) for key in ("observation_space", "action_space"))
    described = metadata.get("env_spec")
    name = metadata.get("task") or parse_id(metadata["dataset_id"]).task
    return EnvironmentCard(
        name=name,
        spec=TeamSpec.of_spaces(agents, observations, actions, state_dim),
        summary=metadata.get("summary") or metadata.get("description") or name,
        env_spec=None if described is None else EnvSpec.from_json(described),
        reference_random=metadata.get("ref_min_score"),
        reference_expert=metadata.get("ref_max_score"),
        horizon=horizon,
    )


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
