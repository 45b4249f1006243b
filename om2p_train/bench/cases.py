"""What is measured: teams of the tasks' sizes on made-up data, so that nothing has to be generated first."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from om2p_data.dataset import Dataset
from om2p_data.envs import find
from om2p_data.episodes import Episodes
from om2p_data.spec import EnvironmentCard
from om2p_train import algorithms, config
from om2p_train.algorithms import Algorithm
from om2p_train.algorithms.base import NormalizeQ
from om2p_train.batches import Transitions
from om2p_train.bench.plain import Setting
from om2p_train.capture import CudaGraphs
from om2p_train.compute import usable_device
from om2p_train.config import Scale, TrainRecipe
from om2p_train.learner import Learner
from om2p_train.streams import INITIALISATION, SAMPLING, SeedStreams
from om2p_train.team import Team

# MA-SfBC's behaviour model learns in the first of a run's updates and its critic in the last, so both kinds are timed.
_UPDATES = 10**9


@dataclass(frozen=True)
class Case:
    """One learner to time.

    Attributes:
        recipe: name; task: alias.
        seeds: how many are stacked.
        settings: overrides of the recipe.
        device: torch device; graphs: whether updates are recorded there.
    """

    recipe: str
    task: str
    seeds: int
    settings: tuple[str, ...]
    device: str
    graphs: bool = True

    def resolve(self, scale: Scale) -> TrainRecipe:
        """The recipe.

        Raises:
            UserError: no such recipe or key.
        """
        return config.load(self.recipe, find(self.task).name, None, scale, self.settings)


def made_up(task_name: str, transitions: int) -> Dataset:
    """Uniform numbers of a task's sizes: speeds do not depend on values.

    Args:
        task_name: name or alias.
        transitions: at least; whole episodes.

    Raises:
        UserError: no such task.
    """
    task = find(task_name)
    card = EnvironmentCard.of(task)
    spec, rng = card.spec, np.random.default_rng(0)
    episodes = -(-transitions // task.horizon)
    steps = episodes * task.horizon
    truncated = np.zeros((episodes, task.horizon, spec.num_agents), bool)
    truncated[:, -1] = True
    drawn = rng.random((steps, spec.num_agents, spec.act_dim), np.float32) * 2.0 - 1.0
    flat = Episodes(
        obs=rng.standard_normal((steps + episodes, spec.num_agents, spec.obs_dim), np.float32),
        actions=np.eye(spec.act_dim, dtype=np.float32)[drawn.argmax(-1)] if spec.discrete[0] else drawn,
        rewards=rng.standard_normal((steps, spec.num_agents), np.float32),
        terminated=np.zeros((steps, spec.num_agents), bool),
        truncated=truncated.reshape(steps, spec.num_agents),
        state=None,
        lengths=np.full(episodes, task.horizon, np.int64),
        policy=np.zeros(episodes, np.int32),
        seed=np.zeros(episodes, np.int64),
    )
    return Dataset(f"om2p/{task.name}/made-up-v0", {"content_hash": "", "tier": "random"}, card, task, (), flat)


def learner_of(case: Case, recipe: TrainRecipe, dataset: Dataset) -> tuple[Algorithm, Learner]:
    """A learner that is ready to take updates."""
    device, seeds = usable_device(case.device), range(case.seeds)
    initial = SeedStreams(seeds, INITIALISATION, device)
    wanted = recipe.data.behavior_teams
    teams = wanted if isinstance(wanted, int) else 0  # nobody made these data: there are no teams to find
    team = Team.of(dataset.environment.spec, teams)
    algorithm = algorithms.find(recipe.algorithm)(team, recipe.network, recipe.options, initial)
    data = Transitions(dataset, device, recipe.data)
    if teams:
        data.mark(torch.arange(len(data.lengths), device=device) % teams, teams, 0)
    algorithm.policy.standardize(data.obs_mean, data.obs_scale)
    graphs = CudaGraphs() if device.type == "cuda" and case.graphs else None
    streams = SeedStreams(seeds, SAMPLING, device)
    return algorithm, Learner(algorithm, data, streams, recipe.optimizer, _UPDATES, recipe.compute, graphs)


def has_peers(recipe: TrainRecipe) -> bool:
    """Whether the peers of OM2P compute this update: guided, and by the slope of Q."""
    options: Any = recipe.options
    return options.normalize_q is NormalizeQ.SLOPE and options.eta > 0


def setting_of(recipe: TrainRecipe, dataset: Dataset) -> Setting:
    """What the peers of OM2P need to know."""
    options: Any = recipe.options
    spec = dataset.environment.spec
    shared = {field.name for field in dataclasses.fields(Setting)} & set(options.model_dump())
    return Setting(
        agents=spec.num_agents,
        obs_dim=spec.obs_dim,
        act_dim=spec.act_dim,
        hidden=recipe.network.hidden,
        batch_size=recipe.optimizer.batch_size,
        exact=options.derivative.value == "exact",
        rho=recipe.optimizer.rho,
        learning_rate=recipe.optimizer.learning_rate,
        **{name: getattr(options, name) for name in shared},
    )


def peer_data(dataset: Dataset) -> dict[str, np.ndarray]:
    """The data as the peers take them: next observations beside the observations."""
    flat = dataset.episodes
    index = flat.obs_index
    return {
        "obs": flat.obs[index],
        "next_obs": flat.obs[index + 1],
        "actions": flat.actions,
        "rewards": flat.rewards,
        "mask": (~flat.terminated).astype(np.float32),
    }
