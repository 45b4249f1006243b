"""Multi-agent Minari data sets that somebody else wrote, read into Episodes.

Minari knows no teams, but Dict spaces with one entry an agent are what everybody comes to. Rewards and ends are
the team's; where `infos/agent_rewards` has a row a step and a column an agent, agents' own rewards come from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from minari.serialization import deserialize_space
from tqdm import tqdm

from om2p_data import metadata
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.hdf5 import FILE_NAME
from om2p_data.metadata import BehaviorPolicy
from om2p_data.spec import EnvironmentCard, TeamSpec
from om2p_data.storage import reason


def describe(content: Mapping[str, Any]) -> EnvironmentCard:
    """The environment of a foreign data set, from Minari's own metadata.

    Raises:
        UserError: it is not a multi-agent data set, or not one that can be read.
    """
    dataset_id = content.get("dataset_id")
    if content.get("data_format", "hdf5") != "hdf5":
        raise UserError(f"{dataset_id} is stored as {content['data_format']}: only HDF5 data sets are read")
    try:
        seen = deserialize_space(content["observation_space"])
        if not isinstance(seen, spaces.Dict):
            raise UserError(
                f"{dataset_id} is no multi-agent data set: its observations are no Dict with one entry an agent"
            )
        return metadata.environment(content, sorted(seen.spaces), None, None)
    except UserError as error:
        raise UserError(f"{dataset_id} cannot be read as a team's data: {error}") from error
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the metadata of {dataset_id} are damaged: {reason(error)}") from error


def read(folder: Path, content: Mapping[str, Any], environment: EnvironmentCard) -> tuple[Episodes, BehaviorPolicy]:
    """All episodes of the foreign data set in `folder`, and the one policy that is said to have collected them.

    Episodes that end without a flag count as cut off.

    Raises:
        UserError: the file is missing or damaged, or does not hold what the metadata state.
    """
    path = folder / "data" / FILE_NAME
    parts = []
    try:
        seen, done = (deserialize_space(content[key]) for key in ("observation_space", "action_space"))
        with h5py.File(path, "r") as file, tqdm(total=len(file), desc="reading", unit=" episodes", disable=None) as bar:
            for index in range(len(file)):
                parts.append(_episode(file[f"episode_{index}"], environment.spec, seen, done))
                bar.update()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or holds something else than its metadata say: {reason(error)}") from error
    if not parts:
        raise UserError(f"{path} holds no episodes")
    episodes = Episodes.concatenate(parts)
    returns = episodes.team_returns
    policy = BehaviorPolicy(
        name=content.get("algorithm_name") or "unknown",
        algorithm=content.get("algorithm_name") or "unknown",
        step=0,
        seed=0,
        hash="",
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        episodes=episodes.num_episodes,
    )
    return episodes, policy


def _episode(group: Any, spec: TeamSpec, seen: Any, done: Any) -> Episodes:
    rewards = np.asarray(group["rewards"], np.float32).reshape(-1)
    steps = len(rewards)
    obs = np.zeros((steps + 1, spec.num_agents, spec.obs_dim), np.float32)
    actions = np.zeros((steps, spec.num_agents, spec.act_dim), np.float32)
    for index, agent in enumerate(spec.agents):
        obs[:, index, : spec.obs_dims[index]] = _flat(seen[agent], group["observations"][agent], steps + 1)
        actions[:, index, : spec.act_dims[index]] = _flat(done[agent], group["actions"][agent], steps)
    own = group.get("infos/agent_rewards")
    known = own is not None and own.shape == (steps + 1, spec.num_agents)
    agent_rewards = np.asarray(own, np.float32)[1:] if known else np.repeat(rewards[:, None], spec.num_agents, 1)
    terminated, truncated = (np.asarray(group[key], bool).reshape(-1) for key in ("terminations", "truncations"))
    truncated[-1] |= not terminated[-1]
    seed = group.attrs.get("seed")
    return Episodes(
        obs=obs,
        actions=actions,
        rewards=agent_rewards,
        terminated=np.repeat(terminated[:, None], spec.num_agents, 1),
        truncated=np.repeat(truncated[:, None], spec.num_agents, 1),
        state=None,
        lengths=np.array([steps]),
        policy=np.zeros(1, np.int32),
        seed=np.array([seed if isinstance(seed, int | np.integer) else -1], np.int64),
    )


def _flat(space: spaces.Space, stored: Any, rows: int) -> np.ndarray:
    """[rows, size], choices one-hot."""
    if isinstance(stored, h5py.Group) or len(stored) != rows:
        raise UserError(f"{stored.name} does not hold {rows} rows of one vector")
    values = np.asarray(stored)
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[values.reshape(-1).astype(np.int64) - int(space.start)]
    return values.reshape(rows, -1).astype(np.float32)
