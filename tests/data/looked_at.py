"""Data sets to look at: of our worlds, of a made-up game with agents of all kinds, and one that stock Minari wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from om2p_cli.data import app
from typer.testing import CliRunner

from om2p_data import dataset
from om2p_data.behavior.policy import UniformPolicy
from om2p_data.dataset import BehaviorPolicy
from om2p_data.envs import find, make
from om2p_data.episodes import Episodes
from om2p_data.rollout import rollout
from om2p_data.spec import EnvironmentCard, TeamSpec

CN_ID, HC_ID, GAME_ID = "om2p/cooperative-navigation/random-v0", "om2p/halfcheetah-2x3/random-v0", "lab/game/mixed-v3"
FOREIGN_ID = "lab/twins/hand-v1"

Run = Callable[..., str]


def write_all(folder: Path) -> None:
    """All of them, into the folder of data sets."""
    for name, dataset_id, steps in (("cn", CN_ID, 500), ("hc", HC_ID, 100)):
        task = find(name)
        episodes = rollout(UniformPolicy(task), make(name, num_envs=4), steps, seed=5)
        returns = episodes.team_returns
        policy = BehaviorPolicy("random", "uniform", 0, 5, "", returns.mean(), returns.std(), len(returns))
        collection = {"seed": 5, "transitions_requested": steps, "expert_share_requested": None, "commit": "abc"}
        card = EnvironmentCard.of(task)
        dataset.write(dataset_id, episodes, environment=card, policies=[policy], collection=collection, root=folder)
    write_game(folder)
    write_foreign(folder)


def write_game(folder: Path) -> None:
    """A walker with bounds of ±2 and a chooser among 3; the chooser leaves the first of two episodes early."""
    spec = TeamSpec(
        agents=("walker", "chooser"),
        obs_dims=(3, 2),
        act_dims=(2, 3),
        discrete=(False, True),
        state_dim=None,
        action_low=((-2.0, -2.0), (0.0, 0.0, 0.0)),
        action_high=((2.0, 2.0), (1.0, 1.0, 1.0)),
    )
    choices = [0, 1, None, None, 2, 1]  # None: it has left
    actions = np.zeros((6, 2, 3), np.float32)
    actions[:, 0, 0] = [2, 2, -2, 0, 1, 0]
    actions[:, 0, 1] = 0.5
    rewards = np.zeros((6, 2), np.float32)
    rewards[:, 0] = [1, 2, 3, 4, 5, 6]
    terminated = np.zeros((6, 2), bool)
    truncated = np.zeros((6, 2), bool)
    for row, choice in enumerate(choices):
        if choice is not None:
            actions[row, 1, choice] = 1
            rewards[row, 1] = 10
    terminated[[1, 3], [1, 0]] = True
    truncated[5] = True
    obs = np.zeros((8, 2, 3), np.float32)
    obs[:, 0] = [[row, -row, 7] for row in range(8)]
    obs[[0, 1, 2, 5, 6, 7], 1, :2] = [[3, 1], [3, 2], [3, 5], [3, 3], [3, 4], [3, 9]]
    episodes = Episodes(
        obs=obs,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        state=None,
        lengths=np.array([4, 2]),
        policy=np.array([1, 0], np.int32),
        seed=np.array([8, 9]),
    )
    card = EnvironmentCard("game", spec, "a <b>bold</b> game", None, 0.0, 20.0, None)
    policies = [
        BehaviorPolicy("late", "ppo", 20, 1, "cd" * 32, 15.5, 0.0, 1),
        BehaviorPolicy("early", "ppo", 10, 1, "ab" * 32, 15.0, 0.0, 1),
    ]
    sources = [{"id": "lab/game/first-v0", "hash": "ff", "episodes": 2}]
    dataset.write(
        GAME_ID, episodes, environment=card, policies=policies, collection={}, tier_sources=sources, root=folder
    )


def write_foreign(folder: Path) -> None:
    seen = spaces.Dict({name: spaces.Box(-1, 1, (3,), np.float32) for name in ("left", "right")})
    done = spaces.Dict({name: spaces.Box(-1, 1, (1,), np.float32) for name in ("left", "right")})
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=index,
            observations={name: rng.uniform(-1, 1, (6, 3)).astype(np.float32) for name in ("left", "right")},
            actions={name: rng.uniform(-1, 1, (5, 1)).astype(np.float32) for name in ("left", "right")},
            rewards=[1.0] * 5,
            terminations=[False] * 5,
            truncations=[False] * 4 + [True],
        )
        for index in range(3)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        minari.create_dataset_from_buffers(FOREIGN_ID, buffers, observation_space=seen, action_space=done)


def command(root: Path) -> Run:
    """Runs a command of om2p-data on the data sets in `root`; returns what it prints, once its exit code is right."""

    def invoke(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments), "--root", str(root)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke
