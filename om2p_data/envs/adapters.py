"""One world behind the two interfaces that others speak: PettingZoo's ParallelEnv and Gymnasium with Dict spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from om2p_data.envs.registry import Task
from om2p_data.envs.vector import VectorEnv
from om2p_data.errors import UserError

_FRAMES_PER_SECOND = 10


def observation_box(task: Task) -> spaces.Box:
    """Observation space of one agent."""
    return spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)


def action_space(task: Task) -> spaces.Space:
    """Action space of one agent."""
    return spaces.Discrete(task.act_dim) if task.discrete else spaces.Box(-1.0, 1.0, (task.act_dim,), np.float32)


class ParallelWorld(ParallelEnv):
    """A task as a PettingZoo parallel environment: dictionaries keyed by the task's agents.

    Args:
        task: row of the task table.
        build: `(num_envs, seed) -> VectorEnv` of that task; one copy of it is stepped.
        render_mode: None or "rgb_array".
    """

    metadata = {  # noqa: RUF012 (PettingZoo declares it as an instance-level dict)
        "name": "om2p",
        "render_modes": ["rgb_array"],
        "render_fps": _FRAMES_PER_SECOND,
        "is_parallelizable": True,
    }

    def __init__(self, task: Task, build: Callable[[int, int], VectorEnv], render_mode: str | None = None):
        self.task = task
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "name": f"om2p/{task.name}"}
        self.possible_agents = list(task.agents)
        self.agents: list[str] = []
        self.observation_spaces = {agent: observation_box(task) for agent in task.agents}
        self.action_spaces = {agent: action_space(task) for agent in task.agents}
        self.state_space = spaces.Box(-np.inf, np.inf, (task.state_dim,), np.float32)
        # The seed of a world that nobody seeds comes from the operating system, as in every PettingZoo environment.
        self._env = build(1, int(np.random.SeedSequence().generate_state(1)[0]))
        self._env.auto_restart = False
        self._env.reset()

    def observation_space(self, agent: str) -> spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        del options  # the worlds have none
        obs = self._env.reset(seed)
        self.agents = list(self.possible_agents)
        return self._by_agent(obs), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, dict, dict, dict, dict]:
        if not self.agents:
            return {}, {}, {}, {}, {}
        joint = np.stack([self._vector(agent, actions[agent]) for agent in self.possible_agents])[None]
        obs, rewards, terminated, truncated = self._env.step(joint)
        over = bool((terminated | truncated).any())
        step = (
            self._by_agent(obs),
            {agent: float(value) for agent, value in self._by_agent(rewards).items()},
            {agent: bool(value) for agent, value in self._by_agent(terminated).items()},
            {agent: bool(value) for agent, value in self._by_agent(truncated).items()},
            {agent: {} for agent in self.agents},
        )
        if over:
            self.agents = []
        return step

    def state(self) -> np.ndarray:
        """Global state, float32 [S]."""
        return self._env.state()[0]

    def render(self) -> np.ndarray | None:
        """Picture, uint8 [height, width, 3], or None without a render mode."""
        return self._env.render(0) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._env.close()

    def _vector(self, agent: str, action: Any) -> np.ndarray:
        """An agent's action as the vector interface takes it, float32 [A]."""
        if not self.task.discrete:
            return np.asarray(action, np.float32)
        space = self.action_spaces[agent]
        if not space.contains(action):
            raise UserError(f"{agent} must choose an integer from 0 to {self.task.act_dim - 1}, not {action!r}")
        return np.eye(self.task.act_dim, dtype=np.float32)[int(action)]

    def _by_agent(self, values: np.ndarray) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values[0], strict=True))


class TeamEnv(gymnasium.Env):
    """A task as one Gymnasium environment with Dict spaces: what a data set's `recover_environment()` returns.

    The reward is the team's: the mean of the agents' rewards; the agents' own are in `info["agent_rewards"]`.

    Args:
        name: name or alias of the task.
        render_mode: None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": _FRAMES_PER_SECOND}  # noqa: RUF012

    def __init__(self, name: str, render_mode: str | None = None):
        from om2p_data.envs import parallel_env  # the package builds the world; importing it above would be a cycle

        self.render_mode = render_mode
        self._env = parallel_env(name, render_mode=render_mode)
        self.observation_space = spaces.Dict(self._env.observation_spaces)
        self.action_space = spaces.Dict(self._env.action_spaces)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        obs, _ = self._env.reset(seed, options)
        return obs, {}

    def step(self, action: dict[str, np.ndarray]) -> tuple[dict, float, bool, bool, dict]:
        obs, rewards, terminated, truncated, _ = self._env.step(action)
        agent_rewards = np.array([rewards[agent] for agent in self._env.possible_agents], np.float32)
        info = {"agent_rewards": agent_rewards}
        return obs, float(agent_rewards.mean()), any(terminated.values()), any(truncated.values()), info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._env.render()

    def close(self) -> None:
        self._env.close()


class FactoryTeam(gymnasium.Env):
    """Somebody's PettingZoo environment as one Gymnasium environment, with the spaces that `om2p-data collect` stores.

    Observations are flat and choices count from 0; agents that have left see zeros, and their actions are ignored.

    Args:
        factory: `package.module:factory`, which called without arguments gives the environment.
        max_steps: episodes are cut off after so many steps.
        render_mode: what the factory is called with, if not None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": _FRAMES_PER_SECOND}  # noqa: RUF012

    def __init__(self, factory: str, max_steps: int | None = None, render_mode: str | None = None):
        from om2p_data.playing import made_collector  # playing needs the adapters of this module's package

        self.render_mode = render_mode
        self._env = made_collector(factory, max_steps, render_mode, option="its factory")
        self._env.reset()
        self.observation_space = self._env.spec.observation_space()
        self.action_space = self._env.spec.action_space()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._env.reset(seed, options)
        return self._env.last_observations(), {}

    def step(self, action: dict[str, Any]) -> tuple[dict, float, bool, bool, dict]:
        rewards, terminated, truncated = self._env.step_stored(action)
        info = {"agent_rewards": rewards}
        return self._env.last_observations(), float(rewards.mean()), terminated, truncated, info

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()
