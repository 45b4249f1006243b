"""Folders of .npy files, one for each field and agent: the layout of OMAR's data sets (github.com/ling-pan/OMAR).

| file | shape | what it holds |
|---|---|---|
| `obs_<i>`, `next_obs_<i>` | (T, O_i) | transitions, one episode after the other |
| `acs_<i>` | (T, A_i) or (T,) | real numbers; whole numbers are choices: one-hot rows, or indices |
| `rews_<i>` | (T,) | the agent's reward |
| `dones_<i>` | (T,) | true where an episode ended; never in the published particle worlds |
| `states_<i>`, `next_states_<i>` | (T, S) | the global state, the same for every agent; in MuJoCo tasks only |
| `truncated_<i>` | (T,) | ours, which others ignore: ends that are time limits, beside which `dones` are terminations |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.exchange import fields
from om2p_data.exchange.transitions import Transitions
from om2p_data.spec import TeamSpec
from om2p_data.storage import reason, replacing, sync

T = TypeVar("T")


def read(folder: Path, num_agents: int | None) -> tuple[Transitions, list[str]]:
    """Transitions from a folder.

    Args:
        folder: where the files lie.
        num_agents: take so many agents, where files of a scripted opponent stand beside the team's; by default all.

    Returns:
        The transitions, and in words what was left out.

    Raises:
        UserError: a file is missing, unreadable, of another shape or length, or holds NaN; the message names it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found = 0
    while (folder / f"obs_{found}.npy").exists():
        found += 1
    if not 0 < (num_agents or found) <= found:
        raise UserError(f"{folder} holds obs_<i>.npy of {found} agents; {num_agents or 'one or more'} are needed")
    agents = range(num_agents or found)
    notes = [f"agents {len(agents)} to {found - 1} left out: the task has {len(agents)}"] if len(agents) < found else []

    def each(field: str, convert: Callable[[np.ndarray, str], T]) -> list[T]:
        paths = [folder / f"{field}_{agent}.npy" for agent in agents]
        return [convert(_load(path), str(path)) for path in paths]

    obs = each("obs", fields.numbers)
    rows = len(obs[0])

    def columns(field: str) -> list[np.ndarray]:
        return each(field, lambda values, label: fields.numbers(values, label, rows))

    def stacked(field: str, convert: Callable[[np.ndarray, str, int], np.ndarray]) -> np.ndarray:
        return np.stack(each(field, lambda values, label: convert(values, label, rows)), axis=1)

    next_obs = columns("next_obs")
    for agent, (now, following) in enumerate(zip(obs, next_obs, strict=True)):
        if now.shape != following.shape:
            raise UserError(f"{folder}: next_obs_{agent}.npy is {following.shape}, obs_{agent}.npy {now.shape}")
    state = next_state = None
    if (folder / "states_0.npy").exists():
        state, next_state = (fields.common_state(columns(field)) for field in ("states", "next_states"))
        if state.shape != next_state.shape:
            raise UserError(f"{folder}: next_states_<i>.npy make a state of {next_state.shape}, states {state.shape}")
    taken, discrete = zip(*each("acs", lambda values, label: fields.actions(values, label, rows)), strict=True)
    flat = Transitions(
        obs=tuple(obs),
        actions=taken,
        discrete=discrete,
        rewards=stacked("rews", fields.single),
        dones=stacked("dones", fields.flags),
        truncated=stacked("truncated", fields.flags) if (folder / "truncated_0.npy").exists() else None,
        next_obs=tuple(next_obs),
        state=state,
        next_state=next_state,
    )
    return flat, notes


def write(folder: Path, episodes: Episodes, spec: TeamSpec, *, overwrite: bool, progress: bool) -> None:
    """Write a folder that `read` reads, and that OMAR's loader and those that follow it read too.

    What does not fit into the layout is lost: seeds, behaviour policies and metadata.

    Args:
        folder: the new folder.
        episodes: what to write.
        spec: the agents' sizes.
        overwrite: replace a folder of that name.
        progress: show a bar on a terminal.

    Raises:
        UserError: the folder exists already or cannot be written; nothing is left behind.
    """
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists already: overwrite it or choose another --out")
    after = episodes.obs_index + 1
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as partial, _bar(spec.num_agents, progress) as bar:
            for agent in range(spec.num_agents):
                obs = episodes.obs[:, agent, : spec.obs_dims[agent]]
                actions = episodes.actions[:, agent, : spec.act_dims[agent]]
                arrays = {
                    "obs": obs[episodes.obs_index],
                    "acs": actions.astype(np.uint8) if spec.discrete[agent] else actions,
                    "rews": episodes.rewards[:, agent],
                    "next_obs": obs[after],
                    "dones": episodes.terminated[:, agent],
                    "truncated": episodes.truncated[:, agent],
                }
                if episodes.state is not None:
                    arrays |= {"states": episodes.state[episodes.obs_index], "next_states": episodes.state[after]}
                for field, array in arrays.items():
                    with (partial / f"{field}_{agent}.npy").open("xb") as file:
                        np.save(file, array, allow_pickle=False)
                        sync(file)
                bar.update(1)
    except BlockingIOError as error:
        raise UserError(f"{folder} is being written by another process") from error
    except OSError as error:
        raise UserError(f"cannot write {folder}: {reason(error)}") from error


def _load(path: Path) -> np.ndarray:
    if not path.exists():
        raise UserError(f"{path} is missing")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{path} cannot be read as an array: {why}") from error


def _bar(agents: int, progress: bool) -> tqdm:
    return tqdm(total=agents, desc="writing", unit=" agents", disable=None if progress else True)
