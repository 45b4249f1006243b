"""Where trained teams play: our batched worlds, or somebody's environment as a data set or a policy describes it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from om2p_data.conversion import observation_vector, own_action
from om2p_data.envs import find, make
from om2p_data.errors import UserError
from om2p_data.playing import NEVER, called
from om2p_data.rollout import team_returns
from om2p_data.spec import EnvironmentCard, TeamSpec
from om2p_train.recovery import recover
from om2p_train.spaces import from_unit

if TYPE_CHECKING:
    from om2p_data.behavior.policy import Policy

_MOST_WORLDS = 1000  # of ours at a time
_MOST_COPIES = 32  # of somebody's environment at a time: each may hold a simulator
_RANDOM_STEPS, _RANDOM_EPISODES = 25_000, 20  # for the mean return of uniform actions, in our worlds and elsewhere


class Arena(abc.ABC):
    """E copies of an environment.

    Attributes:
        copies: E.
    """

    copies: int

    @abc.abstractmethod
    def returns(self, policy: Policy, seed: int, progress: Callable[[int], object] | None = None) -> np.ndarray:
        """Undiscounted team returns, float64 [E], of one episode in every copy.

        Args:
            policy: acts in [-1, 1] or one-hot.
            seed: of the copies' episodes and of the policy's generator.
            progress: called with the number of episodes that have ended.

        Raises:
            UserError: the environment fails.
        """

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Release what the environment holds."""


class BatchedArena(Arena):
    """One of our own tasks, whose worlds are stepped together."""

    def __init__(self, name: str, copies: int):
        self.copies = copies
        self._env = make(name, copies)

    def returns(self, policy: Policy, seed: int, progress: Callable[[int], object] | None = None) -> np.ndarray:
        played = team_returns(policy, self._env, seed)
        if progress is not None:
            progress(self.copies)
        return played

    def close(self) -> None:
        self._env.close()


class RecoveredArena(Arena):
    """Copies of somebody's environment in lockstep; a copy whose episode is over waits for the others.

    Args:
        environment: the card that says how to make it.
        copies: E.

    Raises:
        UserError: it cannot be made here, or is not what the card says.
    """

    def __init__(self, environment: EnvironmentCard, copies: int):
        self.copies = copies
        self._name, self._spec = environment.name, environment.spec
        self._envs = [recover(environment) for _ in range(copies)]
        self._spaces = [self._envs[0].action_space[agent] for agent in self._spec.agents]  # pyright: ignore[reportIndexIssue]

    def returns(self, policy: Policy, seed: int, progress: Callable[[int], object] | None = None) -> np.ndarray:
        policy_seed, *seeds = np.random.SeedSequence(seed).generate_state(1 + self.copies)
        rng = np.random.default_rng(policy_seed)
        obs = np.zeros((self.copies, self._spec.num_agents, self._spec.obs_dim), np.float32)
        for index, env_seed in enumerate(seeds):
            # 31 bits: more is too much for some environments.
            seen, _ = self._call("reset()", lambda i=index, s=env_seed: self._envs[i].reset(seed=int(s >> 1)))
            self._write(obs[index], seen)
        returns, running = np.zeros(self.copies), np.ones(self.copies, bool)
        for _ in range(NEVER):
            actions = from_unit(policy.act(obs, rng).swapaxes(0, 1), self._spec)
            for index in np.flatnonzero(running).tolist():
                reward, over = self._step(index, actions, obs)
                returns[index] += reward
                running[index] = not over
                if over and progress is not None:
                    progress(1)
            if not running.any():
                return returns
        raise UserError(f"{self._name}: an episode has not ended after {NEVER:,} steps")

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _step(self, index: int, actions: list[np.ndarray], obs: np.ndarray) -> tuple[float, bool]:
        """Step one copy and write what it shows to its row of obs; reward and whether the episode is over."""
        own = {
            agent: own_action(space, choice[index])
            for agent, space, choice in zip(self._spec.agents, self._spaces, actions, strict=True)
        }
        seen, reward, terminated, truncated, _ = self._call("step()", lambda: self._envs[index].step(own))
        self._write(obs[index], seen)
        return float(reward), bool(terminated or truncated)

    def _write(self, row: np.ndarray, seen: dict[str, Any]) -> None:
        space: Any = self._envs[0].observation_space
        for index, (agent, size) in enumerate(zip(self._spec.agents, self._spec.obs_dims, strict=True)):
            try:
                row[index, :size] = observation_vector(space[agent], seen[agent])
            except UserError as error:
                raise UserError(f"{self._name}: the observation of agent {agent!r} {error}") from error

    def _call(self, what: str, function: Callable[[], Any]) -> Any:
        return called(f"{self._name}: {what}", function)


class UniformTeam:
    """Uniform actions in [-1, 1], or uniform choices, of any team: the policy that scores beside the trained ones."""

    def __init__(self, spec: TeamSpec):
        self._spec = spec

    def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Observations [E, N, O] -> actions float32 [E, N, A], padded with zeros, choices one-hot."""
        spec = self._spec
        drawn = rng.uniform(-1.0, 1.0, (len(obs), spec.num_agents, spec.act_dim)).astype(np.float32)
        padding = spec.padding[1]
        if spec.discrete[0]:
            return np.eye(spec.act_dim, dtype=np.float32)[np.where(padding, -2.0, drawn).argmax(-1)]
        return np.where(padding, 0.0, drawn).astype(np.float32)


def most_copies(environment: EnvironmentCard) -> int:
    """How many copies of an environment are worth having side by side."""
    return _MOST_COPIES if environment.task is None else _MOST_WORLDS


def open_arena(environment: EnvironmentCard, copies: int) -> Arena:
    """So many copies of an environment, whoever's it is.

    Raises:
        UserError: nobody can make it here; the message says why.
    """
    task = environment.task
    return RecoveredArena(environment, copies) if task is None else BatchedArena(task.name, copies)


def obstacle(environment: EnvironmentCard) -> str | None:
    """Why an environment cannot be played here, None if it can be."""
    try:
        open_arena(environment, 1).close()
    except UserError as error:
        return str(error)
    return None


def random_return(environment: EnvironmentCard) -> float:
    """Mean team return of uniform actions: 25,000 steps of our worlds, 20 episodes of somebody's environment.

    Raises:
        UserError: as `open_arena`, or the actions have no bounds.
    """
    task = environment.task
    arena = open_arena(environment, _RANDOM_EPISODES if task is None else _RANDOM_STEPS // task.horizon)
    try:
        return float(arena.returns(UniformTeam(environment.spec), seed=0).mean())
    finally:
        arena.close()


def named(name: str) -> EnvironmentCard:
    """The card of one of our tasks, by name or alias.

    Raises:
        UserError: no such task.
    """
    return EnvironmentCard.of(find(name))
