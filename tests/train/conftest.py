"""Small data sets for the learners, made in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from om2p_data.dataset import Dataset
from om2p_data.envs.registry import Family, PublishedReturns, Task
from om2p_data.episodes import Episodes
from om2p_data.spec import EnvironmentCard


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks gain nothing from a second thread and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy_task(num_agents: int, obs_dim: int, act_dim: int, horizon: int) -> Task:
    return Task(
        name="toy",
        alias="toy",
        family=Family.PARTICLE,
        scenario="toy",
        agents=tuple(f"agent_{i}" for i in range(num_agents)),
        obs_dim=obs_dim,
        act_dim=act_dim,
        state_dim=1,
        horizon=horizon,
        store_state=False,
        expert_share=0.1,
        returns=PublishedReturns(0, 0, 0, 1, 0, 1),
        summary="a problem with a known answer",
    )


def toy_dataset(
    obs: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    *,
    terminal: bool | np.ndarray,
    length: int = 1,
    discrete: bool = False,
    act_dims: tuple[int, ...] | None = None,
) -> Dataset:
    """A data set of equally long episodes.

    Args:
        obs: [E, T + 1, N, O]. actions: [E, T, N, A]. rewards: [E, T, N].
        terminal: whether episodes end by termination (else by a time limit), or that for every agent, [E, N].
        length: T.
        discrete: whether the actions are one-hot choices.
        act_dims: of each agent, where they differ; the rest of the actions is padding.
    """
    episodes, _, agents, obs_dim = obs.shape
    over = np.zeros((episodes, length, agents), bool)
    over[:, -1] = True
    by_agent = np.broadcast_to(terminal, (episodes, agents))[:, None]
    flat = Episodes(
        obs=obs.reshape(-1, agents, obs_dim).astype(np.float32),
        actions=actions.reshape(episodes * length, agents, -1).astype(np.float32),
        rewards=rewards.reshape(-1, agents).astype(np.float32),
        terminated=(over & by_agent).reshape(-1, agents),
        truncated=(over & ~by_agent).reshape(-1, agents),
        state=None,
        lengths=np.full(episodes, length, np.int64),
        policy=np.zeros(episodes, np.int32),
        seed=np.zeros(episodes, np.int64),
    )
    task = toy_task(agents, obs_dim, actions.shape[-1], length)
    card = EnvironmentCard.of(task)
    spec = dataclasses.replace(
        card.spec, discrete=(discrete,) * agents, act_dims=act_dims or (actions.shape[-1],) * agents
    )
    card = dataclasses.replace(card, spec=spec)
    return Dataset("om2p/toy/random-v0", {"content_hash": "", "tier": "random"}, card, task, (), flat)


@pytest.fixture
def random_dataset() -> Dataset:
    """2 agents, obs 5, act 2, 40 episodes of 6 steps, uniform numbers; half of the last steps terminate."""
    return _uniform_dataset(lambda rng: rng.uniform(-1, 1, (40, 6, 2, 2)), discrete=False)


@pytest.fixture
def discrete_dataset() -> Dataset:
    """2 agents, obs 5, 3 choices each, 40 episodes of 6 steps, uniform numbers; half of the last steps terminate."""
    return _uniform_dataset(lambda rng: np.eye(3)[rng.integers(3, size=(40, 6, 2))], discrete=True)


def _uniform_dataset(draw_actions: Callable[[np.random.Generator], np.ndarray], discrete: bool) -> Dataset:
    rng = np.random.default_rng(0)
    obs, actions, rewards = rng.uniform(-1, 1, (40, 7, 2, 5)), draw_actions(rng), rng.uniform(-1, 1, (40, 6, 2))
    terminal = (
        rng.random((40, 2)) < 0.5
    )  # teammates differ, so that a loss which takes one's mask for another's is seen
    return toy_dataset(obs, actions, rewards, terminal=terminal, length=6, discrete=discrete)
