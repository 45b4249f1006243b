"""Recording any PettingZoo parallel environment: wrap it, play as usual, write a data set.

    collector = Collector(my_env)
    ...  # the loop that you have anyway: collector.reset(seed=...), collector.step(actions)
    collector.write("om2p/harvest/medium-v0")

Observations and discrete actions are flattened as Gymnasium does it (a choice becomes one-hot); actions of a Discrete
space that starts elsewhere are stored from 0 on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import BaseParallelWrapper, aec_to_parallel

from om2p_data import dataset
from om2p_data.conversion import action_converter, observation_vector, own_action, padded, stored_name
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.metadata import BehaviorPolicy
from om2p_data.provenance import origin
from om2p_data.spec import EnvironmentCard, TeamSpec
from om2p_data.storage import parse_id

_RECORDED_PACKAGES = ("om2p", "gymnasium", "numpy", "pettingzoo")
_LARGEST = float(np.finfo(np.float32).max)


class Collector(BaseParallelWrapper):
    """A parallel environment that records whole episodes.

    An episode that is reset before it has ended is dropped. Agents may leave before the others, not join later.

    Args:
        env: the environment, not yet reset; a turn-based one is made parallel, where PettingZoo can do that.
        max_steps: episodes are cut off after so many steps; environments that never end need it.

    Raises:
        UserError: not a parallel environment, or an agent sees or does what cannot be stored.
    """

    def __init__(self, env: ParallelEnv | AECEnv, *, max_steps: int | None = None):
        if isinstance(env, AECEnv):
            env = _parallel(env)
        needed = ("possible_agents", "observation_space", "action_space", "reset", "step")
        missing = [name for name in needed if not hasattr(env, name)]
        if missing:
            raise UserError(f"{type(env).__name__} is no PettingZoo parallel environment: it has no {missing[0]}")
        if not env.possible_agents:
            raise UserError(f"{type(env).__name__} has no possible_agents")
        super().__init__(env)
        self.possible_agents = list(env.possible_agents)
        self.agents: list = []
        self._max_steps = max_steps
        self._index = {agent: index for index, agent in enumerate(self.possible_agents)}
        self._names = {agent: stored_name(agent) for agent in self.possible_agents}
        self._sees = {agent: env.observation_space(agent) for agent in self.possible_agents}
        self._does = {agent: env.action_space(agent) for agent in self.possible_agents}
        self._converters: list[Callable[[Any], np.ndarray | None]] = []
        self._spec: TeamSpec | None = None
        self._open: _Episode | None = None
        self._done: list[Episodes] = []

    @property
    def spec(self) -> TeamSpec:
        """The team as data sets describe it; known after the first reset, which shows whether there is a state."""
        if self._spec is None:
            raise UserError("nothing was recorded yet: call reset() first")
        return self._spec

    @property
    def num_transitions(self) -> int:
        """Of the completed episodes."""
        return sum(part.num_transitions for part in self._done)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin an episode: as the environment's own.

        Raises:
            UserError: what it gives back is not what PettingZoo asks for.
        """
        answer = self.env.reset(seed=seed, options=options)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UserError("reset() of the environment must return observations and infos")
        observations, infos = answer
        self.agents = list(self.env.agents)
        strangers = [agent for agent in self.agents if agent not in self._names]
        if strangers or not self.agents:
            raise UserError(f"after reset(), agents is {self.agents}, possible_agents {self.possible_agents}")
        if self._spec is None:
            state = self._state()
            self._spec = self._describe(None if state is None else len(state))
            self._converters = [action_converter(space) for space in self._does.values()]
        absent = [agent for agent in self.possible_agents if agent not in self.agents]
        if absent:
            raise UserError(f"agent {absent[0]!r} is not there when the episode begins: agents may leave, not join")
        self._open = _Episode(self._spec, -1 if seed is None else seed)
        self._last_rows = self._observe(self._open, observations, self.agents)
        return observations, infos

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        """Step and record: as the environment's own.

        Raises:
            UserError: no episode is open, an action is missing or outside its space, or what the environment gives back
                is not what PettingZoo asks for; the message names the agent and the step.
        """
        episode = self._open
        if episode is None:
            raise UserError("the episode is over: call reset() before step()")
        self._open = None  # until the step is recorded: after an error the episode is dropped
        t, before = episode.length + 1, self.agents
        recorded = self._flat_actions(actions, before, t)
        answer = self.env.step(actions)
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise UserError("step() of the environment must return observations, rewards, terminations, ... (five)")
        observations, rewards, terminations, truncations, infos = answer
        if self._max_steps is not None and t >= self._max_steps:
            truncations = {agent: not _of(terminations, agent, "terminations", t) for agent in before}
        ended = {
            agent: (
                bool(_of(terminations, agent, "terminations", t)),
                bool(_of(truncations, agent, "truncations", t)),
            )
            for agent in before
        }
        left = [agent for agent in before if not any(ended[agent])]
        if left:
            _check_agents(list(self.env.agents), before, left, t)
        numbers = {agent: _number(_of(rewards, agent, "rewards", t), agent, t) for agent in before}
        episode.add(
            recorded,
            {self._index[agent]: value for agent, value in numbers.items()},
            {self._index[agent]: flags for agent, flags in ended.items()},
        )
        self._last_rows = self._observe(episode, observations, before)
        self.agents = left
        if left:
            self._open = episode
        else:
            self._done.append(episode.finish())
        return observations, rewards, terminations, truncations, infos

    def last_observations(self) -> dict[str, np.ndarray]:
        """The flat observations of the last step by stored name, zeros for agents that have left."""
        sizes = zip(self.spec.agents, self._last_rows, self.spec.obs_dims, strict=True)
        return {name: row[:size] for name, row, size in sizes}

    def step_stored(self, actions: Mapping[str, Any]) -> tuple[np.ndarray, bool, bool]:
        """Step with actions as data sets hold them.

        Args:
            actions: by stored name, choices counted from 0; those of agents that have left are ignored.

        Returns:
            Rewards float32 [N], whether every agent of the team has terminated, whether one was cut off at the end.
        """
        own = {agent: own_action(self._does[agent], actions[self._names[agent]]) for agent in self.agents}
        _, rewards, *_ = self.step(own)
        row = np.zeros(len(self.possible_agents), np.float32)
        for agent in own:
            row[self._index[agent]] = rewards[agent]
        if self.agents:
            return row, False, False
        last = self._done.pop()
        return row, bool(last.team_terminated[-1]), bool(last.team_truncated[-1])

    def take(self) -> Episodes | None:
        """The episodes completed since the last call, None if there are none."""
        done, self._done = self._done, []
        return Episodes.concatenate(done) if done else None

    def write(
        self,
        dataset_id: str,
        *,
        policy: str = "unknown",
        summary: str | None = None,
        overwrite: bool = False,
        root: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Path:
        """Write all completed episodes as a Minari data set.

        Args:
            dataset_id: `<namespace>/<task>/<tier>-v<N>`.
            policy: name of what acted.
            summary: one line about the environment.
            overwrite, root, progress: as in `dataset.write`.

        Raises:
            UserError: no episode was completed, or what `dataset.write` refuses; what was recorded is kept.
        """
        done = self._done
        episodes = self.take()
        self._done = done
        if episodes is None:
            raise UserError("no episode was completed: there is nothing to write")
        return write_collected(
            dataset_id,
            episodes,
            describe(dataset_id, self.spec, summary or self._env_name(), self._max_steps),
            policy=policy,
            seed=0,
            collection={},
            overwrite=overwrite,
            root=root,
            progress=progress,
        )

    def _describe(self, state_dim: int | None) -> TeamSpec:
        names = list(self._names.values())
        sees = spaces.Dict({self._names[agent]: space for agent, space in self._sees.items()})
        does = spaces.Dict({self._names[agent]: space for agent, space in self._does.items()})
        return TeamSpec.of_spaces(names, sees, does, state_dim)

    def _env_name(self) -> str:
        return str(getattr(self.env, "metadata", {}).get("name") or type(self.env).__name__)

    def _state(self) -> np.ndarray | None:
        """Global state [S] where the environment has one that is a vector."""
        try:
            state = np.asarray(self.env.state())
        except Exception:  # PettingZoo's default raises; others fail in their own ways
            return None
        if state.dtype == np.uint8 or state.dtype.kind not in "fiub" or state.size == 0:
            return None
        return state.astype(np.float32).reshape(-1)

    def _observe(self, episode: _Episode, observations: Any, agents: list) -> np.ndarray:
        """Record what the agents see and the state; float32 [N, O]."""
        t, vectors = episode.length, {}
        for agent in agents:
            value = _of(observations, agent, "observations", t)
            try:
                vectors[self._index[agent]] = observation_vector(self._sees[agent], value)
            except UserError as error:
                raise UserError(f"step {t}: observation of agent {agent!r} {error}") from error
        return episode.observe(vectors, self._state() if self.spec.state_dim is not None else None)

    def _flat_actions(self, actions: Any, agents: list, t: int) -> dict[int, np.ndarray]:
        flat = {}
        for agent in agents:
            value, index = _of(actions, agent, "actions", t), self._index[agent]
            vector = self._converters[index](value)
            if vector is None:
                raise UserError(
                    f"step {t}: action {value!r} of agent {agent!r} is outside its space {self._does[agent]}"
                )
            flat[index] = vector
        return flat


class _Episode:
    """One episode while it is played, agents by index."""

    def __init__(self, spec: TeamSpec, seed: int):
        self._spec, self._seed = spec, seed
        self._obs: list[np.ndarray] = []
        self._state: list[np.ndarray] = []
        self._rows: list[tuple[np.ndarray, ...]] = []

    @property
    def length(self) -> int:
        return len(self._rows)

    def observe(self, vectors: Mapping[int, np.ndarray], state: np.ndarray | None) -> np.ndarray:
        self._obs.append(padded(vectors, self._spec.num_agents, self._spec.obs_dim))
        if self._spec.state_dim is not None:
            if state is None or len(state) != self._spec.state_dim or not np.isfinite(state).all():
                raise UserError(f"step {self.length}: state() is not the finite vector that it was at first")
            self._state.append(state)
        return self._obs[-1]

    def add(
        self, actions: Mapping[int, np.ndarray], rewards: Mapping[int, float], ended: Mapping[int, tuple[bool, bool]]
    ) -> None:
        agents = self._spec.num_agents
        flags = np.zeros((2, agents), bool)
        reward = np.zeros(agents, np.float32)
        for index, (terminated, truncated) in ended.items():
            flags[:, index] = terminated, truncated
            reward[index] = rewards[index]
        self._rows.append((padded(actions, agents, self._spec.act_dim), reward, flags[0], flags[1]))

    def finish(self) -> Episodes:
        actions, rewards, terminated, truncated = (np.stack(column) for column in zip(*self._rows, strict=True))
        return Episodes(
            obs=np.stack(self._obs),
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            state=np.stack(self._state) if self._state else None,
            lengths=np.array([self.length]),
            policy=np.zeros(1, np.int32),
            seed=np.array([self._seed], np.int64),
        )


def describe(
    dataset_id: str, spec: TeamSpec, summary: str, horizon: int | None, env_spec: Any = None
) -> EnvironmentCard:
    """What a data set of that id says about an environment that is none of ours."""
    return EnvironmentCard(parse_id(dataset_id).task, spec, summary, env_spec, None, None, horizon)


def write_collected(
    dataset_id: str,
    episodes: Episodes,
    environment: EnvironmentCard,
    *,
    policy: str,
    seed: int,
    collection: Mapping[str, Any],
    overwrite: bool,
    root: str | os.PathLike[str] | None,
    progress: bool,
) -> Path:
    """Write episodes that one policy of somebody else collected."""
    returns = episodes.team_returns
    acted = BehaviorPolicy(
        name=policy,
        algorithm=policy,
        step=0,
        seed=seed,
        hash="",
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        episodes=episodes.num_episodes,
    )
    return dataset.write(
        dataset_id,
        episodes,
        environment=environment,
        policies=[acted],
        collection={**collection, **origin(_RECORDED_PACKAGES)},
        overwrite=overwrite,
        root=root,
        progress=progress,
    )


def _parallel(env: AECEnv) -> ParallelEnv:
    try:
        return aec_to_parallel(env)
    except Exception as error:  # asserted, for environments in which the order of turns matters
        raise UserError(f"{env} is turn-based and cannot be made parallel: {error}") from error


def _check_agents(there: list, before: list, left: list, t: int) -> None:
    """Whether an environment's list of agents is what its flags say.

    Args:
        there: its list, after step t.
        before: the list before.
        left: those of them that have not ended.
    """
    for agent in there:
        if agent not in before:
            raise UserError(f"step {t}: agent {agent!r} joined: agents may leave, not join")
        if agent not in left:
            raise UserError(f"step {t}: agent {agent!r} has ended, but is still among the environment's agents")
    for agent in left:
        if agent not in there:
            raise UserError(f"step {t}: agent {agent!r} vanished without being terminated or truncated")


def _of(values: Any, agent: Any, what: str, t: int) -> Any:
    if not isinstance(values, (dict, Mapping)) or agent not in values:  # dict first: the other takes its time
        raise UserError(f"step {t}: {what} hold nothing for agent {agent!r}")
    return values[agent]


def _number(value: Any, agent: Any, t: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"step {t}: reward {value!r} of agent {agent!r} is no number") from error
    if not abs(number) <= _LARGEST:  # true of NaN too
        raise UserError(f"step {t}: reward of agent {agent!r} is {number}, no finite number of float32")
    return number
