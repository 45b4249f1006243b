"""What a data set is about: the agents with the sizes of what they see and do, and the environment around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from om2p_data.errors import UserError

if TYPE_CHECKING:  # importing the worlds takes a second, which reading data need not pay
    from om2p_data.envs.registry import Task

Bounds = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TeamSpec:
    """The agents of a team, in order, and the sizes of what they see and do.

    In memory all agents are padded with zeros to the largest, and discrete actions are one-hot; on the disk every agent
    has its own size, and a discrete action is an integer.

    Attributes:
        agents: names of the N agents.
        obs_dims: components of each agent's observation.
        act_dims: components of each agent's action, or its number of choices where that is discrete.
        discrete: whether each agent's actions are discrete.
        state_dim: components of the stored global state, or None where none is stored.
        action_low, action_high: bounds of each agent's continuous actions by component; None means -1 and 1.

    Raises:
        UserError: no agents, a name that data sets cannot hold, or sizes that do not fit; the message says which.
    """

    agents: tuple[str, ...]
    obs_dims: tuple[int, ...]
    act_dims: tuple[int, ...]
    discrete: tuple[bool, ...]
    state_dim: int | None
    action_low: Bounds | None = None
    action_high: Bounds | None = None

    def __post_init__(self) -> None:
        if not self.agents or len(set(self.agents)) != len(self.agents):
            raise UserError(f"a team needs agents with different names, not {list(self.agents)}")
        for name in self.agents:
            if not isinstance(name, str) or not name or "/" in name or name == ".":
                raise UserError(f"agent name {name!r} cannot stand in a data set: names are text without '/'")
        for label in ("obs_dims", "act_dims", "discrete", "action_low", "action_high"):
            values = getattr(self, label)
            if values is not None and len(values) != len(self.agents):
                raise UserError(f"{label} has {len(values)} entries for {len(self.agents)} agents")
        if min(self.obs_dims) < 1 or min(self.act_dims) < 1:
            raise UserError(f"agents must see and do something: obs_dims {self.obs_dims}, act_dims {self.act_dims}")

    @property
    def num_agents(self) -> int:
        return len(self.agents)

    @property
    def sizes(self) -> tuple:
        """All but the bounds: what two teams share whose data can stand in one file."""
        return self.agents, self.obs_dims, self.act_dims, self.discrete, self.state_dim

    @property
    def obs_dim(self) -> int:
        """The largest agent's."""
        return max(self.obs_dims)

    @property
    def act_dim(self) -> int:
        """The largest agent's."""
        return max(self.act_dims)

    @cached_property
    def padding(self) -> tuple[np.ndarray, np.ndarray]:
        """Which entries of observations bool [N, O] and actions bool [N, A] are padding."""
        obs, actions = np.array(self.obs_dims)[:, None], np.array(self.act_dims)[:, None]
        return np.arange(self.obs_dim) >= obs, np.arange(self.act_dim) >= actions

    def observation_space(self) -> spaces.Dict:
        """The team's observations, each agent at its own size."""
        sizes = zip(self.agents, self.obs_dims, strict=True)
        return spaces.Dict({agent: spaces.Box(-np.inf, np.inf, (size,), np.float32) for agent, size in sizes})

    def action_space(self) -> spaces.Dict:
        """The team's actions, each agent at its own size."""
        return spaces.Dict({agent: self._action_space(index) for index, agent in enumerate(self.agents)})

    def _action_space(self, index: int) -> spaces.Space:
        size = self.act_dims[index]
        if self.discrete[index]:
            return spaces.Discrete(size)
        low = np.full(size, -1.0) if self.action_low is None else np.array(self.action_low[index])
        high = np.full(size, 1.0) if self.action_high is None else np.array(self.action_high[index])
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), (size,), np.float32)

    @classmethod
    def of_spaces(
        cls, agents: Sequence[str], observations: spaces.Space, actions: spaces.Space, state_dim: int | None
    ) -> TeamSpec:
        """The spec of a team with these Dict spaces.

        Raises:
            UserError: the spaces are not those of a team, or an agent's is of a kind that cannot be stored.
        """
        for label, space in (("observation", observations), ("action", actions)):
            if not isinstance(space, spaces.Dict) or set(space.spaces) != set(agents):
                raise UserError(f"the {label} space is no Dict with one space for each of the agents {list(agents)}")
        assert isinstance(observations, spaces.Dict)
        assert isinstance(actions, spaces.Dict)
        own = [actions[agent] for agent in agents]
        boxes = [_flat_box(agent, space) for agent, space in zip(agents, own, strict=True)]
        return cls(
            agents=tuple(agents),
            obs_dims=tuple(observation_size(agent, observations[agent]) for agent in agents),
            act_dims=tuple(
                int(space.n) if isinstance(space, spaces.Discrete) else box.shape[0]
                for space, box in zip(own, boxes, strict=True)
            ),
            discrete=tuple(isinstance(space, spaces.Discrete) for space in own),
            state_dim=state_dim,
            action_low=tuple(tuple(map(float, box.low)) for box in boxes),
            action_high=tuple(tuple(map(float, box.high)) for box in boxes),
        )


@dataclass(frozen=True)
class EnvironmentCard:
    """What a data set says about the environment that its episodes were played in.

    Attributes:
        name: the second part of the data set's id.
        spec: the team.
        summary: one line of description.
        env_spec: how Gymnasium makes it anew, or None where nobody can.
        reference_random, reference_expert: returns that score 0 and 100, or None.
        horizon: steps after which every episode is cut off, or None.
    """

    name: str
    spec: TeamSpec
    summary: str
    env_spec: EnvSpec | None
    reference_random: float | None
    reference_expert: float | None
    horizon: int | None

    @property
    def task(self) -> Task | None:
        """The row of the task table that the environment is, if it is one."""
        from om2p_data.envs.registry import TASKS

        task = TASKS.get(self.name)
        return task if task is not None and EnvironmentCard.of(task).spec.sizes == self.spec.sizes else None

    def normalized(self, team_return: float) -> float | None:
        """0 for the random reference, 100 for the expert's; None where there are none."""
        low, high = self.reference_random, self.reference_expert
        return None if low is None or high is None or low == high else 100.0 * (team_return - low) / (high - low)

    def to_json(self) -> dict[str, Any]:
        """Plain values for files."""
        described = None if self.env_spec is None else json.loads(self.env_spec.to_json())
        return {**vars(self), "spec": asdict(self.spec), "env_spec": described}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EnvironmentCard:
        """The inverse of `to_json`.

        Raises:
            KeyError, ValueError, TypeError: values that it did not write.
        """
        spec, described = values["spec"], values["env_spec"]
        return cls(
            **{
                **values,
                "spec": TeamSpec(**{key: _tuples(value) for key, value in spec.items()}),
                "env_spec": None if described is None else EnvSpec.from_json(json.dumps(described)),
            }
        )

    @classmethod
    def of(cls, task: Task) -> EnvironmentCard:
        """The card of a row of the task table."""
        count = task.num_agents
        return cls(
            name=task.name,
            spec=TeamSpec(
                agents=task.agents,
                obs_dims=(task.obs_dim,) * count,
                act_dims=(task.act_dim,) * count,
                discrete=(task.discrete,) * count,
                state_dim=task.state_dim if task.store_state else None,
            ),
            summary=task.summary,
            # No max_episode_steps: the world keeps its own clock, and Gymnasium would put a second one around it.
            env_spec=EnvSpec(
                id=f"om2p/{task.name}-v0",
                entry_point="om2p_data.envs.adapters:TeamEnv",
                kwargs={"name": task.name},
            ),
            reference_random=task.reference_random,
            reference_expert=task.reference_expert,
            horizon=task.horizon,
        )


def observation_size(agent: str, space: spaces.Space) -> int:
    """Components of an agent's observation once it is flat.

    Raises:
        UserError: images, or a space that has no flat form of fixed size.
    """
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1:
        raise UserError(f"agent {agent!r} observes images {space.shape}: only vectors can be stored")
    if not space.is_np_flattenable:
        raise UserError(f"agent {agent!r} observes {type(space).__name__}, which has no flat form of fixed size")
    return spaces.flatdim(space)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _flat_box(agent: str, space: spaces.Space) -> spaces.Box:
    """The bounds of an agent's actions; those of discrete ones are of their one-hot form."""
    if isinstance(space, spaces.Discrete):
        return spaces.Box(0.0, 1.0, (int(space.n),), np.float32)
    if isinstance(space, spaces.Box):
        low, high = (bound.ravel().astype(np.float32) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.float32)
    raise UserError(f"agent {agent!r} acts in {type(space).__name__}: only Box and Discrete actions can be stored")
