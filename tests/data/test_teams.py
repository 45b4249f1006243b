"""The behaviour teams that ship with the package: they are what the recipes make, and they score what they say."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from om2p_data import tiers
from om2p_data.behavior import training
from om2p_data.behavior.config import EXPERT, LEVELS, MEDIUM, BehaviorConfig
from om2p_data.behavior.policy import with_noise
from om2p_data.behavior.training import Milestone
from om2p_data.envs import make
from om2p_data.envs.registry import TASKS, Family, Task, find
from om2p_data.recipe import parse_overrides
from om2p_data.rollout import team_returns
from om2p_data.tiers import Tier

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(str(resources.files("om2p_data.behavior").joinpath("teams")))
FILES = sorted(FOLDER.rglob("*.*"))
NAMES = [f"{path.parent.name}-{path.stem}" for path in FILES]

each_team = pytest.mark.parametrize("path", FILES, ids=NAMES)


def own_recipe(task: Task, *settings: str) -> BehaviorConfig:
    return tiers.load_recipe(task, None, parse_overrides(list(settings))).behavior


def team_of(path: Path) -> tuple[Task, Milestone]:
    task = find(path.parent.name)
    found = training.bundled(task, path.stem, own_recipe(task))
    assert found is not None, f"{path} is not what the task's recipe makes: train it anew"
    return task, found


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("what ships must not be trained")


def test_files_are_teams_of_tasks_and_small() -> None:
    """Both levels or none: a data set of a mix never needs a training for one half only."""
    assert {"cooperative-navigation", "predator-prey", "world", "halfcheetah-2x3"} <= {p.parent.name for p in FILES}
    assert {path.parent.name for path in FILES} <= set(TASKS)
    for folder in {path.parent for path in FILES}:
        assert {path.name for path in folder.iterdir()} == {f"{level}.safetensors" for level in LEVELS}
    assert sum(path.stat().st_size for path in FILES) < 1_000_000


@each_team
def test_cards_say_how_the_team_was_made(path: Path) -> None:
    task, team = team_of(path)
    config, card = own_recipe(task), team.card
    assert (team.level, card["level"], card["task"]) == (path.stem, path.stem, task.name)
    assert team.origin == "bundled with om2p"
    limit = {"max_steps": card["recipe"]["max_steps"]}  # when to give up: no part of what the team is
    assert card["recipe"] == config.model_dump(mode="json", exclude_none=True) | limit
    assert card["fingerprint"] == config.fingerprint(task, make(task.name).prey_identity)
    assert (card["algorithm"], card["hidden"]) == (config.algorithm, list(config.hidden))
    assert card["prey"] == make(task.name).prey_identity
    assert card["hash"] == team.actor.content_hash()
    assert card["episodes"] == config.judging_episodes
    assert card["collection_noise"] == config.collection_noise
    assert 0 < card["env_steps"] < limit["max_steps"] + config.num_envs * config.segment_steps
    low, high = config.levels.window(path.stem)
    assert low <= card["return_mean"] <= high
    # What was judged is what is kept: weights in half precision.
    assert team.actor.rounded().content_hash() == card["hash"]


@each_team
def test_teams_score_on_fresh_starts_what_their_level_asks(path: Path) -> None:
    """Particle teams over 1,000 episodes; MuJoCo's over 20, whose standard error is allowed for."""
    task, team = team_of(path)
    config = own_recipe(task)
    particle = task.family is Family.PARTICLE
    policy = with_noise(team.actor, task, config.collection_noise)
    returns = team_returns(policy, make(task.name, 1_000 if particle else 20), seed=2_024)
    error = returns.std() / np.sqrt(len(returns))
    low, high = config.levels.window(path.stem)
    slack = 0.0 if particle else error
    assert low - slack <= returns.mean() <= high + slack
    assert abs(returns.mean() - team.card["return_mean"]) < 4 * np.hypot(
        error, team.card["return_std"] / np.sqrt(team.card["episodes"])
    )


@each_team
def test_agents_of_a_team_act_on_their_own_observation(path: Path) -> None:
    task, team = team_of(path)
    rng = np.random.default_rng(0)
    obs = make(task.name, 200, seed=3).reset()  # choices change for some of them only
    actions = team.actor.act(obs, rng)
    assert actions.shape == (200, task.num_agents, task.act_dim)
    assert np.abs(actions).max() <= 1
    for n in range(task.num_agents):
        changed = obs.copy()
        changed[:, n] += 0.1
        moved = (team.actor.act(changed, rng) != actions).any((0, 2))
        assert moved.tolist() == [agent == n for agent in range(task.num_agents)]


# When they are taken


def test_a_level_is_taken_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    monkeypatch.setattr(training, "train", forbidden)
    task = find("cn")
    config = tiers.load_recipe(task, None)
    for tier, levels in ((Tier.MEDIUM, [MEDIUM]), (Tier.EXPERT, [EXPERT]), (Tier.MEDIUM_EXPERT, [MEDIUM, EXPERT])):
        found = tiers.collect(task, tier, config, transitions=50, seed=7, progress=False)
        assert [team.level for team in found.teams] == levels
        assert {team.origin for team in found.teams} == {"bundled with om2p"}
        for policy, team in zip(found.policies, found.teams, strict=True):
            assert (policy.hash, policy.seed) == (team.card["hash"], team.card["seed"])
    # How data are collected is no part of what the team is.
    many = tiers.load_recipe(task, None, {"collection": {"num_envs": 2}})
    assert tiers.collect(task, Tier.MEDIUM, many, transitions=50, progress=False).teams[0].origin.startswith("bundled")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ([], {"fresh": True}),
        (["behavior.td3.gamma=0.91"], {}),
        (["behavior.levels.expert=530"], {}),
        (["behavior.collection_noise=0.2"], {}),
        ([], {"tier": Tier.MEDIUM_REPLAY}),
    ],
)
def test_a_team_that_the_package_does_not_have_is_trained(
    settings: list[str], given: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    monkeypatch.setattr(training, "train", forbidden)
    task = find("cn")
    config = tiers.load_recipe(task, None, parse_overrides(settings))
    given = {"tier": Tier.MEDIUM, "transitions": 50} | given
    with pytest.raises(AssertionError, match="must not be trained"):
        tiers.collect(task, config=config, progress=False, **given)


def test_a_team_that_met_another_prey_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    task = find("pp")
    config = own_recipe(task)
    assert training.bundled(task, MEDIUM, config) is not None
    assert config.fingerprint(task, "another") != config.fingerprint(task, make("pp").prey_identity)
    monkeypatch.setattr(training, "make", lambda name: type("World", (), {"prey_identity": "another"}))
    assert training.bundled(task, MEDIUM, config) is None
